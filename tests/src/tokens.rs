//! A cluster's service account tokens: the key an API server signs with, its JWKS, and tokens that look in every
//! claim like those that kubelet hands over.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::pods::{Pod, hex, uid};
use crate::scratch::replace_file;
use crate::wall;

/// The issuer that tokens name unless a cluster is set up otherwise.
pub const TOKEN_ISSUER: &str = "https://kubernetes.default.svc";
/// The audience of tokens that are meant for Countersign.
pub const AUDIENCE: &str = "countersign";
/// Namespace and name of the agent's own service account.
pub const AGENT_SERVICE_ACCOUNT: (&str, &str) = ("countersign-system", "countersign-agent");

/// The signing key of a cluster.
pub struct Cluster {
    pkcs8: Vec<u8>,
    signing: EncodingKey,
    public: Vec<u8>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("key_id", &self.key_id()).finish_non_exhaustive()
    }
}

impl Cluster {
    /// A cluster with a new key.
    pub fn new() -> Result<Self> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .context("making a signing key")?;
        Self::from_pkcs8(pkcs8.as_ref().to_vec())
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8)
            .map_err(|rejected| anyhow::anyhow!("the signing key: {rejected}"))?;
        let public = pair.public_key().as_ref().to_vec();
        Ok(Self { signing: EncodingKey::from_ec_der(&pkcs8), pkcs8, public })
    }

    /// The cluster whose key lies in this file; made, if there is none.
    pub fn load_or_create(file: &Path) -> Result<Self> {
        if file.exists() {
            return Self::from_pkcs8(fs::read(file).with_context(|| file.display().to_string())?);
        }
        let cluster = Self::new()?;
        replace_file(file, &cluster.pkcs8, 0o600)?;
        Ok(cluster)
    }

    fn key_id(&self) -> String {
        hex(self.public.get(1..9).unwrap_or_default())
    }

    /// What the API server serves at `/openid/v1/jwks`.
    pub fn jwks(&self) -> String {
        let point =
            |from: usize| URL_SAFE_NO_PAD.encode(self.public.get(from..from + 32).unwrap_or_default());
        json!({"keys": [{
            "use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256",
            "kid": self.key_id(), "x": point(1), "y": point(33),
        }]})
        .to_string()
    }

    /// A token for a pod on a node, as kubelet would get it by `TokenRequest`, for an audience and a time in seconds.
    pub fn token(&self, pod: &Pod, node: &str, audience: &str, seconds: i64) -> Result<String> {
        self.sign(&claims(pod, node, audience, seconds))
    }

    /// The agent's own token on a node.
    pub fn agent_token(&self, node: &str) -> Result<String> {
        let (namespace, account) = AGENT_SERVICE_ACCOUNT;
        self.token(&Pod::new(namespace, "countersign-agent-x7x7x", account), node, AUDIENCE, 3600)
    }

    /// Signs whatever claims: for tokens that no API server would sign.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id());
        header.typ = None;
        jsonwebtoken::encode(&header, claims, &self.signing).context("signing a token")
    }
}

/// The claims of a pod-bound token (Kubernetes 1.32 and later: with `jti` and the node).
pub fn claims(pod: &Pod, node: &str, audience: &str, seconds: i64) -> Value {
    let now = wall::unix();
    // One account has one uid for as long as it lives.
    let account_uid = format!("sa-{}-{}", pod.namespace, pod.service_account);
    json!({
        "iss": TOKEN_ISSUER,
        "sub": format!("system:serviceaccount:{}:{}", pod.namespace, pod.service_account),
        "aud": [audience],
        "iat": now, "nbf": now, "exp": now + seconds,
        "jti": uid(),
        "kubernetes.io": {
            "namespace": pod.namespace,
            "serviceaccount": {"name": pod.service_account, "uid": account_uid},
            "pod": {"name": pod.name, "uid": pod.uid},
            "node": {"name": node, "uid": format!("node-{node}")},
        },
    })
}

/// The claims of a token, unverified: to be shown. The token itself never is.
pub fn decode(token: &str) -> Result<Value> {
    let payload = token.split('.').nth(1).context("a JWT has three parts")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{DecodingKey, Validation};

    #[test]
    fn a_token_verifies_against_the_jwks() {
        let cluster = Cluster::new().unwrap();
        let pod = Pod::new("payments", "api-1", "api");
        let token = cluster.token(&pod, "n1", AUDIENCE, 600).unwrap();
        let keys: JwkSet = serde_json::from_str(&cluster.jwks()).unwrap();
        let kid = jsonwebtoken::decode_header(&token).unwrap().kid.unwrap();
        let key = DecodingKey::from_jwk(keys.find(&kid).unwrap()).unwrap();
        let mut wanted = Validation::new(Algorithm::ES256);
        wanted.set_audience(&[AUDIENCE]);
        wanted.set_issuer(&[TOKEN_ISSUER]);
        let claims = jsonwebtoken::decode::<Value>(&token, &key, &wanted).unwrap().claims;
        assert_eq!(claims["sub"], "system:serviceaccount:payments:api");
        assert_eq!(claims["kubernetes.io"]["pod"]["uid"], pod.uid.as_str());
        assert_eq!(claims, decode(&token).unwrap());
        wanted.set_audience(&["https://api"]);
        assert!(jsonwebtoken::decode::<Value>(&token, &key, &wanted).is_err());
    }

    #[test]
    fn a_key_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        let first = Cluster::load_or_create(&file).unwrap().jwks();
        assert_eq!(Cluster::load_or_create(&file).unwrap().jwks(), first);
        assert_ne!(Cluster::new().unwrap().jwks(), first);
    }
}
