//! Restarts, rotation, the documents, and what is never logged.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

use super::cluster::{Cluster, NOW, Running, clock, pass, workload};
use crate::Error;
use crate::identity::Token;
use crate::issuer::ReviewerConfig;
use crate::kubernetes::Server;

pub(super) async fn get(running: &Running, path: &str) -> (u16, String) {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let uri = format!("http://{}{path}", running.http).parse().unwrap();
    let answer = client.get(uri).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_restart_with_a_new_root_is_survived() {
    let cluster = Cluster::new();
    let issuer = Running::start(cluster.config()).await;
    let address = issuer.address;
    let client = cluster.client(address, clock());
    let pod = workload("api");
    let first = client.x509(&pod, &cluster.tokens("api"), None).await.unwrap();
    issuer.stop().await;

    let error = client.x509(&pod, &cluster.tokens("api"), Some(&first)).await.unwrap_err();
    assert!(matches!(error, Error::IdentityUnavailable { .. }), "{error}");
    assert!(error.to_string().contains(&format!("the issuer at {address}")), "{error}");

    let mut config = cluster.config();
    config.listen = address;
    let issuer = Running::start(config).await;
    // The old ticket is by a key that is gone; only a token helps.
    let error = client.x509(&pod, &[], Some(&first)).await.unwrap_err();
    assert!(matches!(error, Error::Unauthenticated { .. }), "{error}");
    assert!(error.to_string().contains("keys in memory change when it restarts"), "{error}");
    let second = client.x509(&pod, &cluster.tokens("api"), Some(&first)).await.unwrap();
    assert_ne!(second.x509.roots, first.x509.roots);
    client.x509(&pod, &[], Some(&second)).await.unwrap();
    issuer.stop().await;
}

#[tokio::test]
async fn a_server_with_another_root_is_not_talked_to() {
    let cluster = Cluster::new();
    let impostor = Cluster::new();
    let issuer = Running::start(cluster.config()).await;
    let other = Running::start(impostor.config()).await;
    let client = cluster.client(other.address, clock());
    let error = client.x509(&workload("api"), &cluster.tokens("api"), None).await.unwrap_err();
    assert!(matches!(error, Error::IdentityUnavailable { .. }));
    assert!(error.to_string().contains("certificate"), "{error}");
    issuer.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn what_the_agent_lacks_is_named() {
    let cluster = Cluster::new();
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let client = cluster.client(nowhere, clock());
    let error = client.x509(&workload("api"), &cluster.tokens("api"), None).await.unwrap_err().to_string();
    assert!(
        error.contains("bundle.pem: can't be read: entity not found; the issuer's --bundle-out writes it")
    );
    let issuer = Running::start(cluster.config()).await;
    let client = cluster.client_with(cluster.path("no-token"), issuer.address, clock());
    let error = client.x509(&workload("api"), &cluster.tokens("api"), None).await.unwrap_err().to_string();
    assert!(error.contains("no-token: can't be read: entity not found"), "{error}");
    issuer.stop().await;
}

#[tokio::test]
async fn an_api_server_that_is_down_is_the_issuers_trouble() {
    let cluster = Cluster::new();
    // Any certificate will do as its authority.
    std::fs::write(cluster.path("token"), "own-token").unwrap();
    let mut config = cluster.config();
    config.reviewer = ReviewerConfig::Kubernetes(Server {
        url: "https://127.0.0.1:1".parse().unwrap(),
        ca: cluster.path("bundle.pem"),
        token: cluster.path("token"),
    });
    let issuer = Running::start(config).await;
    let client = cluster.client(issuer.address, clock());
    let error = client.x509(&workload("api"), &cluster.tokens("api"), None).await.unwrap_err();
    assert!(matches!(error, Error::IdentityUnavailable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("the agent's token can't be reviewed: API server 127.0.0.1:1"), "{text}");
    issuer.stop().await;
}

#[tokio::test]
async fn a_storm_of_publishes_is_one_review_a_token() {
    let cluster = Cluster::new();
    let issuer = Running::start(cluster.config()).await;
    let client = cluster.client(issuer.address, clock());
    let names: Vec<_> = (0..100).map(|number| format!("pod{number}")).collect();
    let calls = names.iter().map(async |name| {
        let (pod, tokens) = (workload(name), cluster.tokens(name));
        let identity = client.x509(&pod, &tokens, None).await.unwrap();
        client.jwt(&pod, &tokens, &identity, "https://api").await.unwrap();
    });
    futures_util::future::join_all(calls).await;
    let metrics = get(&issuer, "/metrics").await.1;
    assert!(metrics.contains("countersign_issuer_token_reviews_total{result=\"good\"} 101"), "{metrics}");
    issuer.stop().await;
}

/// How many tokens the issuer has reviewed.
async fn reviews(issuer: &Running) -> usize {
    let metrics = get(issuer, "/metrics").await.1;
    let line = metrics.lines().find(|line| line.contains("token_reviews_total{result=\"good\"}"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap()
}

#[tokio::test]
async fn an_identity_is_one_review_however_many_jwts_it_is_given() {
    let cluster = Cluster::new();
    let issuer = Running::start(cluster.config()).await;
    let client = cluster.client(issuer.address, clock());
    let pod = workload("api");
    let fresh = |number: i64| {
        // Kubelet brings another every few minutes.
        let token = cluster.token("api", |claims| claims["exp"] = (NOW + 7200 + number).into());
        [Token { audience: "countersign".to_owned(), token }]
    };
    let identity = client.x509(&pod, &fresh(0), None).await.unwrap();
    assert_eq!(reviews(&issuer).await, 2, "the agent's and the pod's");
    for number in 1..=10 {
        pass(Duration::from_secs(150)).await;
        client.jwt(&pod, &fresh(number), &identity, "https://api").await.unwrap();
    }
    assert_eq!(reviews(&issuer).await, 12, "the agent's ten times more");
    // One that no token has proved is not built upon while there is a token.
    let by_key = client.x509(&pod, &[], Some(&identity)).await.unwrap();
    client.jwt(&pod, &fresh(11), &by_key, "https://api").await.unwrap();
    assert_eq!(reviews(&issuer).await, 13, "the pod's");
    issuer.stop().await;
}

#[tokio::test]
async fn an_issuer_that_does_not_take_the_keys_word_is_shown_the_token() {
    let cluster = Cluster::new();
    let issuer = Running::start(cluster.config()).await;
    let pod = workload("api");
    let identity =
        cluster.client(issuer.address, clock()).x509(&pod, &cluster.tokens("api"), None).await.unwrap();
    issuer.stop().await;
    // Another root and another key: it knows no ticket of the one before.
    let issuer = Running::start(cluster.config()).await;
    let client = cluster.client(issuer.address, clock());
    client.jwt(&pod, &cluster.tokens("api"), &identity, "https://api").await.unwrap();
    let error = client.jwt(&pod, &[], &identity, "https://api").await.unwrap_err();
    assert!(error.to_string().contains("not by a key this issuer knows"), "{error}");
    issuer.stop().await;
}

#[tokio::test]
async fn renewals_go_on_until_a_token_is_due() {
    let cluster = Cluster::new();
    let mut config = cluster.config();
    config.renew_without_token = Duration::from_secs(2 * 3600);
    let clock = config.clock;
    let issuer = Running::start(config).await;
    let client = cluster.client(issuer.address, clock);
    let pod = workload("api");
    let mut current = client.x509(&pod, &cluster.tokens("api"), None).await.unwrap();
    let tokens = cluster.tokens("api");
    for _ in 0..3 {
        pass(Duration::from_secs(1800)).await;
        // The token ended after ten minutes, so this is by key.
        current = client.x509(&pod, &tokens, Some(&current)).await.unwrap();
    }
    pass(Duration::from_secs(1800)).await;
    let error = client.x509(&pod, &tokens, Some(&current)).await.unwrap_err();
    assert!(matches!(error, Error::Unauthenticated { .. }));
    assert!(error.to_string().contains("--renew-without-token"), "{error}");
    // Past the end of the last SVID nothing is left to sign with.
    pass(Duration::from_secs(1801)).await;
    let error = client.x509(&pod, &tokens, Some(&current)).await.unwrap_err().to_string();
    assert!(error.contains("the identity in use has ended too"), "{error}");
    issuer.stop().await;
}

#[tokio::test]
async fn the_next_root_comes_while_serving() {
    let cluster = Cluster::new();
    let config = cluster.config();
    let clock = config.clock;
    let issuer = Running::start(config).await;
    let client = cluster.client(issuer.address, clock);
    let pod = workload("api");
    let fresh = async || {
        let token = crate::identity::Token {
            audience: "countersign".to_owned(),
            token: cluster.token("api", |claims| claims["exp"] = (NOW + 30 * 86400).into()),
        };
        client.x509(&pod, &[token], None).await.unwrap()
    };
    let first = fresh().await;
    assert_eq!(first.x509.roots.len(), 1);
    pass(crate::issuer::root::LIFE / 2).await;
    // The upkeep wakes and writes both roots; the agent sees the file.
    while get(&issuer, "/bundle").await.1.matches("x5c").count() != 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let second = fresh().await;
    assert_eq!(second.x509.roots.len(), 2);
    assert_eq!(second.x509.roots[0], first.x509.roots[0]);
    pass(Duration::from_secs(3600)).await;
    let third = fresh().await;
    assert_eq!(third.x509.roots.len(), 2);
    issuer.stop().await;
}

#[tokio::test]
async fn documents_and_health() {
    let cluster = Cluster::new();
    let issuer = Running::start(cluster.config()).await;
    let client = cluster.client(issuer.address, clock());
    let (pod, tokens) = (workload("api"), cluster.tokens("api"));
    let identity = client.x509(&pod, &tokens, None).await.unwrap();
    let jwt = client.jwt(&pod, &tokens, &identity, "https://api").await.unwrap();
    let refused = client.x509(&workload("web"), &tokens, None).await;
    assert!(refused.is_err());

    let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&get(&issuer, "/keys").await.1).unwrap();
    let header = jsonwebtoken::decode_header(jwt.token.expose()).unwrap();
    let key = keys.find(&header.kid.unwrap()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    validation.set_audience(&["https://api"]);
    validation.set_issuer(&["https://oidc.example.org"]);
    let key = jsonwebtoken::DecodingKey::from_jwk(key).unwrap();
    let claims = jsonwebtoken::decode::<Value>(jwt.token.expose(), &key, &validation).unwrap().claims;
    assert_eq!(claims["sub"], "spiffe://example.org/ns/pay/sa/api");

    let bundle: Value = serde_json::from_str(&get(&issuer, "/bundle").await.1).unwrap();
    assert_eq!(bundle["keys"].as_array().unwrap().len(), 2);
    let discovery: Value =
        serde_json::from_str(&get(&issuer, "/.well-known/openid-configuration").await.1).unwrap();
    assert_eq!(discovery["issuer"], "https://oidc.example.org");
    assert_eq!(get(&issuer, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get(&issuer, "/readyz").await, (200, "[+] root\n[+] publication\n[+] reviewer\n".to_owned()));
    assert_eq!(get(&issuer, "/nothing").await.0, 404);
    let metrics = get(&issuer, "/metrics").await.1;
    for line in [
        "countersign_issuer_svids_issued_total{kind=\"x509\"} 1",
        "countersign_issuer_svids_issued_total{kind=\"jwt\"} 1",
        "countersign_issuer_calls_refused_total{reason=\"another_pod\"} 1",
        "countersign_issuer_token_reviews_total{result=\"good\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    issuer.stop().await;
}

#[tokio::test]
async fn without_an_oidc_issuer_there_is_no_discovery() {
    let cluster = Cluster::new();
    let mut config = cluster.config();
    config.oidc_issuer = None;
    let issuer = Running::start(config).await;
    let (status, text) = get(&issuer, "/.well-known/openid-configuration").await;
    assert_eq!((status, text.as_str()), (404, "no OIDC issuer is configured; set --oidc-issuer\n"));
    issuer.stop().await;
}

#[tokio::test]
async fn the_documents_are_served_over_tls_too() {
    let cluster = Cluster::new();
    let issuer = Running::start(cluster.config()).await;
    let pem = std::fs::read(cluster.path("bundle.pem")).unwrap();
    let roots = crate::identity::channel::roots(&pem).unwrap();
    let config = crate::identity::channel::client_config(roots, clock()).unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tokio::net::TcpStream::connect(issuer.address).await.unwrap();
    let stream = tls.connect("countersign-issuer".try_into().unwrap(), stream).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    let request = http::Request::get("/bundle").header("host", "countersign-issuer");
    let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    // Health and metrics are for inside.
    drop(answer.into_body().collect().await.unwrap());
    let request = http::Request::get("/metrics").header("host", "countersign-issuer");
    let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
    drop(answer);
    drop(sender);
    issuer.stop().await;
}

/// Collects everything that is logged on this thread.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[test]
fn nothing_secret_is_logged() {
    let captured = Captured::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(captured.clone())
        .finish();
    // With a single dispatcher alive, whichever thread meets a log line first decides for all whether it is
    // ever shown, and other tests' threads have none. A second one makes every dispatcher be asked.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let mut secrets: Vec<Vec<u8>> = Vec::new();
    // Everything below runs on this one thread, so the subscriber sees all of it.
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::new();
            let issuer = Running::start(cluster.config()).await;
            let client = cluster.client(issuer.address, clock());
            let pod = workload("api");
            let tokens = cluster.tokens("api");
            let identity = client.x509(&pod, &tokens, None).await.unwrap();
            let renewed = client.x509(&pod, &[], Some(&identity)).await.unwrap();
            let jwt = client.jwt(&pod, &[], &renewed, "https://api").await.unwrap();
            let bad = cluster.token("api", |claims| claims["exp"] = (NOW + 100_000).into());
            let forged = cluster.tokens("web");
            client.x509(&pod, &forged, None).await.unwrap_err();
            let text = String::from_utf8_lossy(bad.expose()).replace('.', "!");
            let mangled = [crate::identity::Token { audience: "countersign".to_owned(), token: text.into() }];
            client.x509(&pod, &mangled, Some(&renewed)).await.unwrap();
            issuer.stop().await;
            secrets.extend([
                tokens[1].token.expose().to_vec(),
                forged[1].token.expose().to_vec(),
                cluster.agent_token("node-1").expose().to_vec(),
                jwt.token.expose().to_vec(),
                identity.ticket.text.clone().into_bytes(),
                bad.expose().to_vec(),
            ]);
        });
    });
    let log = String::from_utf8_lossy(&captured.0.lock().unwrap()).into_owned();
    assert!(log.contains("issued an X.509-SVID") && log.contains("issued a JWT-SVID"), "no SVID in the log");
    assert!(
        log.contains("spiffe://example.org/ns/pay/sa/api") && log.contains("refused a call"),
        "no refusal in the log"
    );
    for secret in secrets {
        // The claims part is the canary: signatures differ from one signing to the next.
        let text = String::from_utf8(secret).unwrap();
        let claims = text.split('.').nth(1).unwrap();
        assert!(!log.contains(&claims[..40.min(claims.len())]), "a token is in the log");
    }
}
