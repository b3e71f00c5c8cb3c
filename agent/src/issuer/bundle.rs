//! What others need to verify what the issuer signs: the SPIFFE bundle (SPIFFE Trust Domain and Bundle §4), plain
//! keys, OIDC discovery, and the roots as PEM.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};

use crate::issuer::anchor::Anchor;
use crate::issuer::jwt::PublicJwk;
use crate::issuer::keys::{Keys, REFRESH_HINT};

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
    fn of_jwts(anchor: &'a Anchor, usage: &'static str) -> Self {
        Self { public: &anchor.jwt_key, usage, alg: Some("ES256"), kid: Some(anchor.kid()), x5c: None }
    }

    fn of_root(anchor: &'a Anchor) -> Self {
        let x5c = [STANDARD.encode(&anchor.root)];
        Self { public: &anchor.root_key, usage: "x509-svid", alg: None, kid: None, x5c: Some(x5c) }
    }
}

/// The SPIFFE bundle: a JWK Set with the roots, the JWT keys, a sequence number and a refresh hint.
pub(crate) fn spiffe(anchors: &[Arc<Anchor>], sequence: i64) -> Value {
    let mut roots: Vec<&Anchor> = anchors.iter().map(AsRef::as_ref).collect();
    roots.dedup_by(|one, two| one.root == two.root);
    let roots = roots.into_iter().map(Key::of_root);
    let jwts = anchors.iter().map(|anchor| Key::of_jwts(anchor, "jwt-svid"));
    let all: Vec<_> = roots.chain(jwts).collect();
    json!({ "keys": all, "spiffe_sequence": sequence, "spiffe_refresh_hint": REFRESH_HINT.as_secs() })
}

/// The JWT keys alone, as OIDC wants them (RFC 7517 §5).
pub(crate) fn key_set(anchors: &[Arc<Anchor>]) -> Value {
    let all: Vec<_> = anchors.iter().map(|anchor| Key::of_jwts(anchor, "sig")).collect();
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
pub(crate) fn pem(roots: &[Vec<u8>]) -> String {
    roots.iter().map(|der| certificate_pem(der)).collect()
}

pub(crate) fn certificate_pem(der: &[u8]) -> String {
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
    file.write_all(pem(&keys.roots()).as_bytes())?;
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
        let (anchors, sequence) = keys.bundle();
        let bundle = spiffe(&anchors, sequence);
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
        let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(key_set(&keys.bundle().0)).unwrap();
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
