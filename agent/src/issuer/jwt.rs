//! JWT-SVIDs (JWT-SVID §§2-3), and the key that signs them.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, encode};
use serde::{Deserialize, Serialize};

use crate::identity::key::{KeyError, PrivateKey, hex, point, sha256};
use crate::identity::svid::unix;
use crate::issuer::refusal::Refusal;
use crate::issuer::ticket;
use crate::secret::Secret;
use crate::spiffe::SpiffeId;

/// The longest audience.
const MAX_AUDIENCE: usize = 1024;

/// A P-256 public key as a JWK (RFC 7518 §6.2.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PublicJwk {
    pub(crate) kty: String,
    pub(crate) crv: String,
    pub(crate) x: String,
    pub(crate) y: String,
}

impl PublicJwk {
    /// From a `SubjectPublicKeyInfo`; nothing unless it is P-256.
    pub(crate) fn of(public_key_info: &[u8]) -> Option<Self> {
        let point = point(public_key_info)?;
        let (x, y) = point.get(1..)?.split_at_checked(32)?;
        Some(Self {
            kty: "EC".to_owned(),
            crv: "P-256".to_owned(),
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// The uncompressed point; nothing if this is no P-256 key.
    pub(crate) fn point(&self) -> Option<Vec<u8>> {
        let coordinate = |text: &str| URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == 32);
        if self.kty != "EC" || self.crv != "P-256" {
            return None;
        }
        Some([vec![4], coordinate(&self.x)?, coordinate(&self.y)?].concat())
    }

    /// The thumbprint of RFC 7638, which is the key's id.
    pub(crate) fn thumbprint(&self) -> String {
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, self.x, self.y);
        URL_SAFE_NO_PAD.encode(sha256(canonical.as_bytes()))
    }
}

/// A key that signs JWT-SVIDs and tickets.
pub(crate) struct JwtKey {
    kid: String,
    public: PublicJwk,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl JwtKey {
    /// Takes a key for signing JWTs.
    pub(crate) fn new(key: &PrivateKey) -> Result<Self, KeyError> {
        let public = PublicJwk::of(&key.public_key_info()).ok_or(KeyError::Parse)?;
        let decoding = DecodingKey::from_ec_components(&public.x, &public.y).map_err(|_| KeyError::Parse)?;
        let encoding = EncodingKey::from_ec_der(key.to_pkcs8()?.expose());
        Ok(Self { kid: public.thumbprint(), public, encoding, decoding })
    }

    pub(crate) fn kid(&self) -> &str {
        &self.kid
    }

    pub(crate) fn public(&self) -> &PublicJwk {
        &self.public
    }

    pub(crate) fn encoding(&self) -> &EncodingKey {
        &self.encoding
    }

    pub(crate) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }
}

/// An audience a JWT-SVID may be minted for.
#[derive(Debug)]
pub(crate) struct Audience<'a>(&'a str);

impl<'a> Audience<'a> {
    /// `ours` is the audience of the tokens shown to this issuer: a JWT for it might be taken for one.
    pub(crate) fn parse(text: &'a str, ours: &str) -> Result<Self, Refusal> {
        let refuse = |problem: &str| Refusal::Malformed { what: "audience", problem: problem.to_owned() };
        if text.is_empty() {
            return Err(refuse("is empty"));
        }
        if text.len() > MAX_AUDIENCE {
            return Err(refuse("is longer than 1024 bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err(refuse("has control characters"));
        }
        if text == ours || text == ticket::AUDIENCE {
            return Err(refuse("is the issuer's own; choose the one the receiving service expects"));
        }
        Ok(Self(text))
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    sub: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
    jti: String,
}

/// A minted JWT-SVID.
pub(crate) struct Minted {
    pub(crate) token: Secret,
    pub(crate) jti: String,
    /// Unix seconds.
    pub(crate) expires_at: i64,
}

/// Mints a JWT-SVID for one audience.
pub(crate) fn mint(
    key: &JwtKey,
    spiffe_id: &SpiffeId,
    audience: &Audience<'_>,
    issuer: Option<&str>,
    now: SystemTime,
    ttl: Duration,
) -> Result<Minted, Refusal> {
    let jti = hex(&rand::random::<[u8; 16]>());
    let expires_at = unix(now + ttl);
    let claims = Claims {
        iss: issuer,
        sub: spiffe_id.as_str(),
        aud: audience.0,
        iat: unix(now),
        exp: expires_at,
        jti: jti.clone(),
    };
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(key.kid.clone());
    let token =
        encode(&header, &claims, &key.encoding).map_err(|error| Refusal::Signing(error.to_string()))?;
    Ok(Minted { token: Secret::from(token), jti, expires_at })
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::dangerous::insecure_decode;

    use super::*;

    #[test]
    fn a_jwk_is_its_key_again() {
        let key = PrivateKey::generate().unwrap();
        let jwk = PublicJwk::of(&key.public_key_info()).unwrap();
        assert_eq!(jwk.point(), point(&key.public_key_info()));
        assert_eq!(PublicJwk { crv: "P-384".to_owned(), ..jwk.clone() }.point(), None);
        assert_eq!(PublicJwk { x: "AA".to_owned(), ..jwk }.point(), None);
    }

    #[test]
    fn the_thumbprint_is_rfc_7638s() {
        let key = JwtKey::new(&PrivateKey::generate().unwrap()).unwrap();
        let text = serde_json::to_string(key.public()).unwrap();
        let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_str(&text).unwrap();
        assert_eq!(key.kid(), jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap());
    }

    #[test]
    fn audiences() {
        let refused = |text: &str| Audience::parse(text, "countersign").unwrap_err().to_string();
        assert_eq!(refused(""), "the request's audience is empty");
        assert_eq!(refused(&"a".repeat(1025)), "the request's audience is longer than 1024 bytes");
        assert_eq!(refused("a\nb"), "the request's audience has control characters");
        for own in ["countersign", ticket::AUDIENCE] {
            assert!(refused(own).contains("is the issuer's own"));
        }
        assert!(Audience::parse(&"a".repeat(1024), "countersign").is_ok());
    }

    #[test]
    fn what_is_in_a_jwt_svid() {
        let key = JwtKey::new(&PrivateKey::generate().unwrap()).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let id = "spiffe://example.org/ns/pay/sa/api".parse().unwrap();
        let audience = Audience::parse("https://api", "countersign").unwrap();
        let mint = |issuer| mint(&key, &id, &audience, issuer, now, Duration::from_secs(300)).unwrap();
        let minted = mint(Some("https://oidc"));
        let jwt = insecure_decode::<serde_json::Value>(minted.token.expose()).unwrap();
        assert_eq!(
            serde_json::to_value(&jwt.header).unwrap(),
            serde_json::json!({"alg": "ES256", "typ": "JWT", "kid": key.kid()})
        );
        assert_eq!(
            jwt.claims,
            serde_json::json!({
                "iss": "https://oidc", "sub": "spiffe://example.org/ns/pay/sa/api", "aud": "https://api",
                "iat": 1000, "exp": 1300, "jti": minted.jti,
            })
        );
        let other = mint(None);
        assert_ne!(other.jti, minted.jti);
        let jwt = insecure_decode::<serde_json::Value>(other.token.expose()).unwrap();
        assert!(jwt.claims.get("iss").is_none());
    }
}
