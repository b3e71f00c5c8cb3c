//! What others need to verify what the issuer signs: the SPIFFE bundle (SPIFFE Trust Domain and Bundle §4), plain
//! keys, OIDC discovery, and the roots as PEM.

use std::io::{self, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::issuer::jwt::JwtKey;
use crate::issuer::keys::{Keys, REFRESH_HINT};

/// The SPIFFE bundle: a JWK Set with the roots, the JWT keys, a sequence number and a refresh hint.
pub(crate) fn spiffe(keys: &Keys) -> Value {
    let (generations, sequence) = keys.published();
    let mut all = Vec::new();
    for generation in &generations {
        // A root's JWK holds its public key too (RFC 7517 §4.7): some readers want both.
        let mut root = json!(generation.root_key());
        root["use"] = json!("x509-svid");
        root["x5c"] = json!([STANDARD.encode(&generation.root.der)]);
        all.push(root);
    }
    all.extend(generations.iter().map(|generation| jwt_key(&generation.jwt, "jwt-svid")));
    json!({ "keys": all, "spiffe_sequence": sequence, "spiffe_refresh_hint": REFRESH_HINT.as_secs() })
}

/// The JWT keys alone, as OpenID Connect wants them (RFC 7517 §5).
pub(crate) fn key_set(keys: &Keys) -> Value {
    let all: Vec<_> = keys.published().0.iter().map(|generation| jwt_key(&generation.jwt, "sig")).collect();
    json!({ "keys": all })
}

fn jwt_key(key: &JwtKey, usage: &str) -> Value {
    let mut jwk = json!(key.public());
    jwk["use"] = json!(usage);
    jwk["kid"] = json!(key.kid());
    jwk["alg"] = json!("ES256");
    jwk
}

/// OpenID Connect Discovery 1.0 §3. Nobody logs in here, so the authorization endpoint is empty as SPIRE's is.
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
        let keys = Keys::new(&Cluster::new().config()).unwrap();
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
    fn keys_for_openid_connect() {
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
