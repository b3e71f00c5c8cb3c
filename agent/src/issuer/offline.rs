//! Review by the cluster's public keys alone (RFC 7517, RFC 7519, and the claims of Kubernetes' projected tokens).

use std::path::PathBuf;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

use crate::clock::Clock;
use crate::identity::reread::Reread;
use crate::identity::token::{Audiences, MAX_TOKEN_BYTES};
use crate::issuer::refusal::TokenFault;
use crate::issuer::review::{BoundTo, Reviewed, service_account};
use crate::secret::Secret;

/// How far our clock and the API server's may be apart, in seconds.
const LEEWAY: i64 = 10;

/// Reviews tokens with a key set from a file.
pub(crate) struct Offline {
    keys: Reread<JwkSet>,
    issuer: String,
    audience: String,
    clock: Clock,
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    sub: Option<String>,
    #[serde(default)]
    aud: Audiences,
    exp: Option<i64>,
    nbf: Option<i64>,
    #[serde(rename = "kubernetes.io")]
    bound_to: Option<BoundTo>,
}

impl Offline {
    pub(crate) fn new(file: PathBuf, issuer: String, audience: String, clock: Clock) -> Self {
        Self { keys: Reread::new("key set", file, clock, key_set), issuer, audience, clock }
    }

    pub(crate) async fn review(&self, token: &Secret) -> Result<Reviewed, TokenFault> {
        let keys = self.keys.current().await.map_err(|error| TokenFault::Unreviewed(error.to_string()))?;
        let claims = verify(&keys, token)?;
        self.check(&claims)?;
        facts(claims)
    }

    /// Whether there are keys to review with.
    pub(crate) async fn probe(&self) -> Result<(), TokenFault> {
        let keys = self.keys.current().await.map_err(|error| TokenFault::Unreviewed(error.to_string()))?;
        drop(keys);
        Ok(())
    }

    fn check(&self, claims: &Claims) -> Result<(), TokenFault> {
        let now = self.clock.unix();
        let exp = claims.exp.ok_or_else(|| TokenFault::Malformed("it has no exp claim".to_owned()))?;
        if claims.iss.as_deref() != Some(self.issuer.as_str()) {
            return Err(TokenFault::Issuer { wanted: self.issuer.clone() });
        }
        if !claims.aud.contains(&self.audience) {
            return Err(TokenFault::Audience { wanted: self.audience.clone() });
        }
        if exp.saturating_add(LEEWAY) <= now {
            return Err(TokenFault::Expired);
        }
        if claims.nbf.is_some_and(|nbf| nbf.saturating_sub(LEEWAY) > now) {
            return Err(TokenFault::NotYet);
        }
        Ok(())
    }
}

fn key_set(bytes: &[u8]) -> Result<JwkSet, String> {
    let set: JwkSet = serde_json::from_slice(bytes).map_err(|_| {
        "is no JSON Web Key Set: the answer of the API server's /openid/v1/jwks is expected".to_owned()
    })?;
    if set.keys.iter().any(|key| !algorithms(key).is_empty()) {
        Ok(set)
    } else {
        Err("holds no RSA or EC key".to_owned())
    }
}

/// What a key may have signed with: by its type, so that a token can't choose.
fn algorithms(key: &Jwk) -> Vec<Algorithm> {
    if let AlgorithmParameters::RSA(_) = &key.algorithm {
        return vec![Algorithm::RS256, Algorithm::RS384, Algorithm::RS512];
    }
    let AlgorithmParameters::EllipticCurve(parameters) = &key.algorithm else { return Vec::new() };
    if parameters.curve == EllipticCurve::P256 {
        vec![Algorithm::ES256]
    } else if parameters.curve == EllipticCurve::P384 {
        vec![Algorithm::ES384]
    } else {
        Vec::new()
    }
}

fn verify(keys: &JwkSet, token: &Secret) -> Result<Claims, TokenFault> {
    let malformed = |problem: &str| TokenFault::Malformed(problem.to_owned());
    if token.len() > MAX_TOKEN_BYTES {
        return Err(malformed("it is longer than 16 KiB"));
    }
    let header = decode_header(token.expose()).map_err(|_| malformed("it is no signed JWT"))?;
    if header.crit.is_some() {
        return Err(malformed("it has a crit header"));
    }
    let kid = header.kid.ok_or_else(|| malformed("it has no kid header"))?;
    let key = keys
        .find(&kid)
        .ok_or_else(|| TokenFault::Signature("no key of the key set has the kid in its header".to_owned()))?;
    if !algorithms(key).contains(&header.alg) {
        return Err(TokenFault::Signature("its alg is not one of the key's".to_owned()));
    }
    let mut validation = Validation::new(header.alg);
    // Time and audience are checked by ours: by our clock, and with messages of our own.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let key = DecodingKey::from_jwk(key)
        .map_err(|_| TokenFault::Unreviewed("the key set's key can't be used".to_owned()))?;
    match decode::<Claims>(token.expose(), &key, &validation) {
        Ok(data) => Ok(data.claims),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {
            Err(TokenFault::Signature("the signature does not verify".to_owned()))
        }
        Err(_) => Err(malformed("its claims are not those of a service account token")),
    }
}

fn facts(claims: Claims) -> Result<Reviewed, TokenFault> {
    let malformed = |problem: &str| TokenFault::Malformed(problem.to_owned());
    let bound_to = claims.bound_to.ok_or_else(|| malformed("it has no kubernetes.io claim"))?;
    let named = claims.sub.as_deref().and_then(service_account);
    if named != Some((bound_to.namespace.as_str(), bound_to.serviceaccount.name.as_str())) {
        return Err(malformed("its sub and kubernetes.io claims disagree"));
    }
    let pod = bound_to.pod.ok_or_else(|| malformed("it is bound to no pod"))?;
    let node = bound_to.node.filter(|node| !node.name.is_empty()).ok_or(TokenFault::NoNode)?;
    if pod.name.is_empty() || pod.uid.is_empty() {
        return Err(malformed("it is bound to a pod without name or uid"));
    }
    Ok(Reviewed {
        namespace: bound_to.namespace,
        service_account: bound_to.serviceaccount.name,
        pod_name: pod.name,
        pod_uid: pod.uid,
        node_name: node.name,
        expires: claims.exp,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::issuer::tests::cluster::{Cluster, NOW, clock};

    fn offline(cluster: &Cluster) -> Offline {
        Offline::new(cluster.jwks(), Cluster::ISSUER.to_owned(), "countersign".to_owned(), clock())
    }

    #[tokio::test]
    async fn a_good_token() {
        let cluster = Cluster::new();
        let facts = offline(&cluster).review(&cluster.token("api", |_| {})).await.unwrap();
        assert_eq!(facts.describe(), "pod pay/api-0 (uid-api) of service account api");
        assert_eq!((facts.node_name.as_str(), facts.expires), ("node-1", Some(NOW + 600)));
    }

    #[tokio::test]
    async fn each_bad_token_says_why() {
        let cluster = Cluster::new();
        let offline = offline(&cluster);
        for (name, value, why) in [
            ("exp", json!(NOW - 10), "has expired"),
            ("exp", json!(null), "no exp"),
            ("nbf", json!(NOW + 11), "not valid yet"),
            ("aud", json!(["other"]), "not for audience \"countersign\""),
            ("aud", json!(null), "not those of a service account"),
            ("iss", json!("https://other"), "not from issuer"),
            ("sub", json!("system:serviceaccount:pay:web"), "disagree"),
            ("sub", json!("system:serviceaccount:kube-system:api"), "disagree"),
            ("sub", json!("system:node:node-1"), "disagree"),
            ("kubernetes.io", json!(null), "no kubernetes.io claim"),
            (
                "kubernetes.io",
                json!({"namespace": "pay", "serviceaccount": {"name": "api", "uid": "u"}, "node": {"name": "n", "uid": "u"}}),
                "bound to no pod",
            ),
            (
                "kubernetes.io",
                json!({"namespace": "pay", "serviceaccount": {"name": "api", "uid": "u"}, "pod": {"name": "p", "uid": "u"}}),
                "names no node",
            ),
            (
                "kubernetes.io",
                json!({"namespace": "pay", "serviceaccount": {"name": "api", "uid": "u"}, "pod": {"name": "p", "uid": ""}, "node": {"name": "n", "uid": "u"}}),
                "without name or uid",
            ),
        ] {
            let token = cluster.token("api", |claims| claims[name] = value.clone());
            let fault = offline.review(&token).await.unwrap_err().to_string();
            assert!(fault.contains(why), "{name} {value}: {fault}");
        }
        let within_leeway = cluster.token("api", |claims| claims["exp"] = json!(NOW - 9));
        offline.review(&within_leeway).await.unwrap();
    }

    #[tokio::test]
    async fn signatures() {
        let cluster = Cluster::new();
        let offline = offline(&cluster);
        let stranger = Cluster::new();
        let fault = offline.review(&stranger.token("api", |_| {})).await.unwrap_err().to_string();
        assert!(fault.contains("no key of the key set"), "{fault}");
        let fault =
            offline.review(&stranger.token_with_kid(&cluster.kid(), "api")).await.unwrap_err().to_string();
        assert!(fault.contains("does not verify"), "{fault}");
        for (header, why) in [
            (json!({"alg": "none", "kid": cluster.kid()}), "no signed JWT"),
            (json!({"alg": "HS256", "kid": cluster.kid()}), "alg is not one"),
            (json!({"alg": "RS256", "kid": cluster.kid()}), "alg is not one"),
            (json!({"alg": "ES256"}), "no kid"),
            (json!({"alg": "ES256", "kid": cluster.kid(), "crit": ["x"]}), "crit"),
        ] {
            let fault = offline.review(&Cluster::with_header(&header)).await.unwrap_err().to_string();
            assert!(fault.contains(why), "{header}: {fault}");
        }
        let fault = offline.review(&Secret::from("opaque".to_owned())).await.unwrap_err().to_string();
        assert!(fault.contains("no signed JWT"), "{fault}");
    }

    #[tokio::test]
    async fn the_key_set_is_read_again_when_it_changes() {
        let cluster = Cluster::new();
        let offline = offline(&cluster);
        offline.review(&cluster.token("api", |_| {})).await.unwrap();
        let rotated = Cluster::new();
        std::fs::rename(rotated.jwks(), cluster.jwks()).unwrap();
        offline.review(&rotated.token("api", |_| {})).await.unwrap();
        assert!(offline.review(&cluster.token("api", |_| {})).await.is_err());
    }

    #[tokio::test]
    async fn a_key_set_that_is_none() {
        let cluster = Cluster::new();
        for (content, why) in [("", "no JSON Web Key Set"), ("{\"keys\":[]}", "no RSA or EC key")] {
            std::fs::write(cluster.jwks(), content).unwrap();
            let fault = offline(&cluster).review(&cluster.token("api", |_| {})).await.unwrap_err();
            assert!(matches!(fault, TokenFault::Unreviewed(_)));
            assert!(fault.to_string().contains(why), "{fault}");
        }
    }
}
