//! What others need to verify what the issuer signs: the SPIFFE bundle (SPIFFE Trust Domain and Bundle §4), plain
//! keys, OIDC discovery, and the roots as PEM.

use std::io::{self, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};

use crate::issuer::jwt::{JwtKey, PublicJwk};
use crate::issuer::keys::{Keys, REFRESH_HINT};
use crate::issuer::root::Root;

/// A key of a JWK Set.
#[derive(Serialize)]
struct Key<'a> {
    #[serde(flatten)]
    public: &'a PublicJwk,
    #[serde(rename = "use")]
    usage: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    alg: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x5c: Option<[String; 1]>,
}

impl<'a> Key<'a> {
    fn of_jwts(key: &'a JwtKey, usage: &'static str) -> Self {
        Self { public: key.public(), usage, alg: Some("ES256"), kid: Some(key.kid()), x5c: None }
    }

    fn of_root(root: &'a Root) -> Self {
        let x5c = [STANDARD.encode(&root.der)];
        Self { public: &root.public, usage: "x509-svid", alg: None, kid: None, x5c: Some(x5c) }
    }
}

/// The SPIFFE bundle: a JWK Set with the roots, the JWT keys, a sequence number and a refresh hint.
pub(crate) fn spiffe(keys: &Keys) -> Value {
    let (generations, sequence) = keys.published();
    let roots = generations.iter().map(|generation| Key::of_root(&generation.root));
    let jwts = generations.iter().map(|generation| Key::of_jwts(&generation.jwt, "jwt-svid"));
    let all: Vec<_> = roots.chain(jwts).collect();
    json!({ "keys": all, "spiffe_sequence": sequence, "spiffe_refresh_hint": REFRESH_HINT.as_secs() })
}

/// The JWT keys alone, as OIDC wants them (RFC 7517 §5).
pub(crate) fn key_set(keys: &Keys) -> Value {
    let (generations, _) = keys.published();
    let all: Vec<_> = generations.iter().map(|generation| Key::of_jwts(&generation.jwt, "sig")).collect();
    json!({ "keys": all })
}

/// OIDC Discovery 1.0 §3. Nobody logs in here, so the authorization endpoint is empty as SPIRE's is.
pub(crate) fn discovery(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/keys"),
        "authorization_endpoint": "",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// The roots as PEM (RFC 7468 §5).
pub(crate) fn pem(keys: &Keys) -> String {
    keys.roots().iter().map(|der| certificate_pem(der)).collect()
}

fn certificate_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at_checked(64).unwrap_or((rest, ""));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Writes the roots to `path` so that a reader sees all of them or the file as it was. Nothing in it is secret.
pub(crate) fn write(keys: &Keys, path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut beside = name.to_owned();
    beside.push(".next");
    let next = path.with_file_name(beside);
    let mut file = std::fs::File::create(&next)?;
    file.write_all(pem(keys).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&next, path)
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::identity::svid::moment;
    use crate::issuer::root::LIFE;
    use crate::issuer::tests::cluster::{Cluster, NOW};

    fn keys() -> Keys {
        let keys = Keys::new(&Cluster::new().config(), moment(NOW)).unwrap();
        keys.advance(moment(NOW) + LIFE / 2).unwrap();
        keys
    }

    #[test]
    fn the_bundle_has_every_root_and_every_jwt_key() {
        let keys = keys();
        let bundle = spiffe(&keys);
        let roots = keys.roots();
        let listed = bundle["keys"].as_array().unwrap();
        assert_eq!(listed.len(), 4);
        for (jwk, root) in listed.iter().zip(&roots) {
            assert_eq!(jwk["use"], "x509-svid");
            assert_eq!(jwk["x5c"], json!([STANDARD.encode(root)]));
            assert_eq!((&jwk["kty"], &jwk["crv"]), (&json!("EC"), &json!("P-256")));
            assert!(jwk.get("kid").is_none());
        }
        for jwk in &listed[2..] {
            assert_eq!(jwk["use"], "jwt-svid");
            assert!(keys.jwt_key(jwk["kid"].as_str().unwrap()).is_some());
            assert!(jwk.get("d").is_none());
        }
        assert_eq!(bundle["spiffe_refresh_hint"], 300);
        assert!(bundle["spiffe_sequence"].as_i64().unwrap() > NOW);
    }

    #[test]
    fn keys_for_oidc() {
        let keys = keys();
        let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(key_set(&keys)).unwrap();
        assert_eq!(set.keys.len(), 2);
        assert_eq!(discovery("https://oidc")["jwks_uri"], "https://oidc/keys");
    }

    #[test]
    fn the_file_is_replaced_whole() {
        let (keys, dir) = (keys(), tempfile::tempdir().unwrap());
        let path = dir.path().join("bundle.pem");
        std::fs::write(&path, "old").unwrap();
        write(&keys, &path).unwrap();
        let pem = std::fs::read(&path).unwrap();
        let read: Vec<_> = CertificateDer::pem_slice_iter(&pem).map(|one| one.unwrap().to_vec()).collect();
        assert_eq!(read, keys.roots());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(&keys, &dir.path().join("no/such/bundle.pem")).is_err());
    }
}
