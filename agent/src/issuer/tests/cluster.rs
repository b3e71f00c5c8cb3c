//! A cluster as the issuer sees one: a signing key, and pods with tokens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::identity::key::PrivateKey;
use crate::identity::svid::moment;
use crate::identity::{Embedded, Token, Workload, embedded};
use crate::issuer::config::ServiceAccount;
use crate::issuer::jwt::JwtKey;
use crate::issuer::{Bound, Config, ReviewerConfig};
use crate::secret::Secret;

/// The Unix time of all tests: January 2027.
pub(crate) const NOW: i64 = 1_800_000_000;

/// A clock that shows [`NOW`].
pub(crate) fn clock() -> Clock {
    Clock::pinned(moment(NOW))
}

/// A signing key and a directory.
pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    key: PrivateKey,
    kid: String,
}

impl Cluster {
    pub(crate) const ISSUER: &'static str = "https://kubernetes.default.svc";

    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = PrivateKey::generate().unwrap();
        let jwt = JwtKey::new(&key).unwrap();
        let mut jwk = json!(jwt.public());
        jwk["kid"] = json!(jwt.kid());
        jwk["alg"] = json!("ES256");
        // A real answer has keys of kinds nobody here knows, some day.
        let strange = json!({"kty": "AKP", "kid": "post-quantum", "alg": "ML-DSA-65", "pub": "AA"});
        let set = json!({ "keys": [strange, jwk] });
        std::fs::write(dir.path().join("jwks.json"), set.to_string()).unwrap();
        Self { dir, key, kid: jwt.kid().to_owned() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn jwks(&self) -> PathBuf {
        self.path("jwks.json")
    }

    pub(crate) fn kid(&self) -> String {
        self.kid.clone()
    }

    fn claims(name: &str) -> Value {
        json!({
            "iss": Self::ISSUER,
            "sub": format!("system:serviceaccount:pay:{name}"),
            "aud": ["countersign"],
            "iat": NOW, "nbf": NOW, "exp": NOW + 600, "jti": name,
            "kubernetes.io": {
                "namespace": "pay",
                "serviceaccount": {"name": name, "uid": "sa-uid"},
                "pod": {"name": format!("{name}-0"), "uid": format!("uid-{name}")},
                "node": {"name": "node-1", "uid": "node-uid"},
            },
        })
    }

    fn sign(&self, kid: &str, claims: &Value) -> Secret {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(kid.to_owned());
        let key = EncodingKey::from_ec_der(self.key.to_pkcs8().unwrap().expose());
        Secret::from(encode(&header, claims, &key).unwrap())
    }

    /// A token of pod `pay/<name>-0` of service account `name` on node-1, changed.
    pub(crate) fn token(&self, name: &str, change: impl FnOnce(&mut Value)) -> Secret {
        let mut claims = Self::claims(name);
        change(&mut claims);
        self.sign(&self.kid, &claims)
    }

    pub(crate) fn token_with_kid(&self, kid: &str, name: &str) -> Secret {
        self.sign(kid, &Self::claims(name))
    }

    pub(crate) fn with_header(header: &Value) -> Secret {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        Secret::from(format!("{}.{}.c2ln", part(header), part(&Self::claims("api"))))
    }

    /// The agent's own token, on `node`.
    pub(crate) fn agent_token(&self, node: &str) -> Secret {
        self.token("agent", |claims| {
            claims["exp"] = json!(NOW + 10 * 365 * 86400);
            claims["sub"] = json!("system:serviceaccount:countersign-system:countersign-agent");
            claims["kubernetes.io"]["namespace"] = json!("countersign-system");
            claims["kubernetes.io"]["serviceaccount"]["name"] = json!("countersign-agent");
            claims["kubernetes.io"]["node"]["name"] = json!(node);
        })
    }

    /// An issuer's configuration, with the key set as reviewer and everything in memory.
    pub(crate) fn config(&self) -> Config {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        Config {
            trust_domain: "example.org".parse().unwrap(),
            listen: any,
            http_listen: any,
            reviewer: ReviewerConfig::Jwks { file: self.jwks(), issuer: Self::ISSUER.to_owned() },
            audience: "countersign".to_owned(),
            agent: ServiceAccount {
                namespace: "countersign-system".to_owned(),
                name: "countersign-agent".to_owned(),
            },
            root_file: None,
            bundle_out: Some(self.path("bundle.pem")),
            x509_ttl: Duration::from_secs(3600),
            jwt_ttl: Duration::from_secs(300),
            renew_without_token: Duration::from_secs(24 * 3600),
            publication: None,
            inject: None,
            oidc_issuer: Some("https://oidc.example.org".to_owned()),
            clock: clock(),
        }
    }

    /// The agent's client on node-1.
    pub(crate) fn client(&self, issuer: SocketAddr, clock: Clock) -> Embedded {
        self.client_on("node-1", issuer, clock)
    }

    pub(crate) fn client_on(&self, node: &str, issuer: SocketAddr, clock: Clock) -> Embedded {
        let agent_token = self.path(&format!("agent-token-{node}"));
        write(&agent_token, self.agent_token(node).expose());
        self.client_with(agent_token, issuer, clock)
    }

    pub(crate) fn client_with(&self, agent_token: PathBuf, issuer: SocketAddr, clock: Clock) -> Embedded {
        Embedded::new(embedded::Config {
            address: issuer.to_string(),
            bundle: embedded::BundleSource::File(self.path("bundle.pem")),
            agent_token,
            audience: "countersign".to_owned(),
            trust_domain: "example.org".parse().unwrap(),
            clock,
        })
    }

    /// What kubelet hands over with a publish of pod `<name>-0`.
    pub(crate) fn tokens(&self, name: &str) -> Vec<Token> {
        vec![
            Token { audience: "vault".to_owned(), token: Secret::from("not for us".to_owned()) },
            Token { audience: "countersign".to_owned(), token: self.token(name, |_| {}) },
        ]
    }
}

pub(crate) fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

/// Pod `pay/<name>-0`.
pub(crate) fn workload(name: &str) -> Workload {
    Workload {
        namespace: "pay".to_owned(),
        pod_name: format!("{name}-0"),
        pod_uid: format!("uid-{name}"),
        service_account: name.to_owned(),
        hint: None,
    }
}

/// A running issuer.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) http: SocketAddr,
    shutdown: CancellationToken,
    tasks: tokio::task::JoinSet<Result<(), crate::issuer::Error>>,
}

impl Running {
    pub(crate) async fn start(config: Config) -> Self {
        let bound = Bound::new(config).await.unwrap();
        let (address, http) = (bound.address().unwrap(), bound.http_address().unwrap());
        let shutdown = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(bound.serve(shutdown.clone()));
        Self { address, http, shutdown, tasks }
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}

/// Lets `time` pass for every clock of this runtime.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
