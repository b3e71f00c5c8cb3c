//! An API server that checks the question to the letter and answers as told.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, IsCa, SanType};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::identity::key::PrivateKey;
use crate::issuer::root::{Root, live};
use crate::issuer::tests::cluster::{Cluster, NOW, clock, write};

/// One answer: a status, headers and a body; or none, for ever.
enum Reply {
    Answer(u16, String),
    Redirect(String),
    Never,
}

struct ApiServer {
    address: SocketAddr,
    ca_pem: String,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    questions: Arc<Mutex<Vec<Value>>>,
    _tasks: JoinSet<()>,
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

impl ApiServer {
    async fn start() -> Self {
        let now = crate::identity::svid::moment(NOW);
        let ca = Root::generate(&"cluster.local".parse().unwrap(), now).unwrap();
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        live(&mut params, now, now + Duration::from_secs(3600));
        let leaf = params.signed_by(&key, &ca.issuer).unwrap().der().to_vec();
        let pkcs8 = PrivatePkcs8KeyDer::from(key.to_pkcs8().unwrap().expose().to_vec());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(leaf)], PrivateKeyDer::Pkcs8(pkcs8))
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let replies = Arc::new(Mutex::new(VecDeque::new()));
        let questions = Arc::new(Mutex::new(Vec::new()));
        let (to, from) = (Arc::clone(&questions), Arc::clone(&replies));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, to, from) = (tls.clone(), Arc::clone(&to), Arc::clone(&from));
                connections.spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        answer(request, Arc::clone(&to), Arc::clone(&from))
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    // A client that hangs up is part of some tests.
                    drop(served);
                });
            }
        });
        Self { address, ca_pem: pem(&ca.der), replies, questions, _tasks: tasks }
    }

    fn reviewer(&self, cluster: &Cluster) -> Kubernetes {
        write(&cluster.path("ca.crt"), self.ca_pem.as_bytes());
        write(&cluster.path("token"), b"own-token\n");
        let url: Uri = format!("https://{}", self.address).parse().unwrap();
        Kubernetes::new(
            &url,
            cluster.path("ca.crt"),
            cluster.path("token"),
            "countersign".to_owned(),
            clock(),
        )
    }

    fn will(&self, reply: Reply) {
        self.replies.lock().unwrap().push_back(reply);
    }

    fn will_answer(&self, status: u16, body: &Value) {
        self.will(Reply::Answer(status, body.to_string()));
    }
}

/// The question as JSON with its head; what a real API server would refuse is a panic here, and so no answer.
async fn answer(
    request: Request<Incoming>,
    questions: Arc<Mutex<Vec<Value>>>,
    replies: Arc<Mutex<VecDeque<Reply>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let head = json!({
        "method": request.method().as_str(),
        "path": request.uri().to_string(),
        "authorization": header("authorization"),
        "content-type": header("content-type"),
        "accept": header("accept"),
    });
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    questions.lock().unwrap().push(json!({ "head": head, "body": body }));
    let reply = replies.lock().unwrap().pop_front().unwrap();
    let (status, location, body) = match reply {
        Reply::Answer(status, body) => (status, None, body),
        Reply::Redirect(to) => (307, Some(to), String::new()),
        Reply::Never => std::future::pending().await,
    };
    let mut response = Response::builder().status(status).header("content-type", "application/json");
    if let Some(location) = location {
        response = response.header("location", location);
    }
    Ok(response.body(Full::new(Bytes::from(body))).unwrap())
}

fn good() -> Value {
    json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "metadata": {},
        "spec": {"token": "(not looked at)"},
        "status": {
            "authenticated": true,
            "audiences": ["countersign"],
            "user": {
                "username": "system:serviceaccount:pay:api",
                "uid": "sa-uid",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:pay", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/credential-id": ["JTI=api"],
                    "authentication.kubernetes.io/node-name": ["node-1"],
                    "authentication.kubernetes.io/node-uid": ["node-uid"],
                    "authentication.kubernetes.io/pod-name": ["api-0"],
                    "authentication.kubernetes.io/pod-uid": ["uid-api"],
                },
            },
        },
    })
}

#[tokio::test]
async fn the_exact_question_and_the_facts_of_the_answer() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let reviewer = server.reviewer(&cluster);
    let token = cluster.token("api", |_| {});
    server.will_answer(201, &good());
    let facts = reviewer.review(&token).await.unwrap();
    assert_eq!(facts.describe(), "pod pay/api-0 (uid-api) of service account api");
    assert_eq!((facts.node_name.as_str(), facts.expires), ("node-1", Some(NOW + 600)));
    let text = std::str::from_utf8(token.expose()).unwrap();
    let expected = json!({
        "head": {
            "method": "POST",
            "path": "/apis/authentication.k8s.io/v1/tokenreviews",
            "authorization": "Bearer own-token",
            "content-type": "application/json",
            "accept": "application/json",
        },
        "body": {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": text, "audiences": ["countersign"]},
        },
    });
    assert_eq!(*server.questions.lock().unwrap(), [expected]);
    // The token rotates.
    write(&cluster.path("token"), b"rotated-token");
    server.will_answer(201, &good());
    reviewer.review(&token).await.unwrap();
    assert_eq!(server.questions.lock().unwrap()[1]["head"]["authorization"], "Bearer rotated-token");
}

#[tokio::test]
async fn answers_that_grant_nothing() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let reviewer = server.reviewer(&cluster);
    let token = cluster.token("api", |_| {});
    for (pointer, value, why) in [
        ("/status/authenticated", json!(false), "is refused by the API server: it is not authenticated"),
        (
            "/status/error",
            json!("[invalid bearer token]"),
            "is refused by the API server: [invalid bearer token]",
        ),
        (
            "/status/error",
            json!("service account token has expired"),
            "has expired; kubelet's next republish brings a new one",
        ),
        (
            "/status/error",
            json!("token audiences [\"x\"] is invalid for the target audiences"),
            "is not for audience \"countersign\"; request that audience for it",
        ),
        ("/status/audiences", json!([]), "is not for audience \"countersign\"; request that audience for it"),
        (
            "/status/audiences",
            json!(["https://kubernetes.default.svc"]),
            "is not for audience \"countersign\"; request that audience for it",
        ),
        (
            "/status/user",
            json!(null),
            "is no pod-bound service account token: the API server names no user for it",
        ),
        (
            "/status/user/username",
            json!("system:node:node-1"),
            "is no pod-bound service account token: the API server says it is no service account's",
        ),
        (
            "/status/user/extra/authentication.kubernetes.io~1pod-name",
            json!([]),
            "is no pod-bound service account token: it is bound to no pod",
        ),
        (
            "/status/user/extra/authentication.kubernetes.io~1pod-uid",
            json!(["a", "b"]),
            "is no pod-bound service account token: it is bound to no pod",
        ),
        (
            "/status/user/extra/authentication.kubernetes.io~1node-name",
            json!([]),
            "names no node; Kubernetes 1.32 and later put the node into pod-bound tokens",
        ),
    ] {
        let mut answer = good();
        *answer.pointer_mut(pointer).unwrap_or(&mut json!(null)) = value.clone();
        if pointer == "/status/error" {
            answer["status"]["error"] = value;
            answer["status"]["authenticated"] = json!(false);
        }
        server.will_answer(201, &answer);
        assert_eq!(reviewer.review(&token).await.unwrap_err().to_string(), why, "{pointer}");
    }
    // An error beside "authenticated" is still an error.
    let mut answer = good();
    answer["status"]["error"] = json!("webhook failed");
    server.will_answer(201, &answer);
    assert!(matches!(reviewer.review(&token).await, Err(TokenFault::Rejected(_))));
}

#[tokio::test]
async fn answers_that_are_no_review() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let reviewer = server.reviewer(&cluster);
    let token = cluster.token("api", |_| {});
    let text = std::str::from_utf8(token.expose()).unwrap();
    let refusal = |code: u16, message: &str| {
        Reply::Answer(code, json!({"kind": "Status", "status": "Failure", "message": message}).to_string())
    };
    for (reply, why) in [
        (
            refusal(401, "Unauthorized"),
            "it answered 401 Unauthorized: Unauthorized; the token of --kubernetes-token is not accepted",
        ),
        (
            refusal(403, "tokenreviews is forbidden"),
            "it answered 403 Forbidden: tokenreviews is forbidden; bind ClusterRole system:auth-delegator to the issuer's service account",
        ),
        (refusal(429, "slow down"), "it answered 429 Too Many Requests: slow down"),
        (
            refusal(500, &format!("etcd choked on {text}")),
            "it answered 500 Internal Server Error: etcd choked on (token)",
        ),
        (Reply::Answer(500, "<html>".to_owned()), "it answered 500 Internal Server Error"),
        (Reply::Answer(201, "<html>".to_owned()), "it answered something that is no TokenReview"),
        (Reply::Answer(201, "{}".to_owned()), "it answered a TokenReview without a status"),
        (Reply::Answer(201, " ".repeat(MAX_ANSWER + 1)), "its answer broke off or is too long"),
        (Reply::Redirect("https://elsewhere.example.org/".to_owned()), "it answered 307 Temporary Redirect"),
    ] {
        server.will(reply);
        let fault = reviewer.review(&token).await.unwrap_err();
        let expected = format!("can't be reviewed: API server {}: {why}", server.address);
        assert_eq!(fault.to_string(), expected);
        assert!(matches!(fault, TokenFault::Unreviewed(_)));
    }
    let asked = server.questions.lock().unwrap().len();
    assert_eq!(asked, 9, "no redirect was followed, nothing was asked twice");
}

#[tokio::test]
async fn hopeless_tokens_are_not_asked_about() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let reviewer = server.reviewer(&cluster);
    for (token, why) in [
        (cluster.token("api", |claims| claims["exp"] = json!(NOW - 60)), "has expired"),
        (
            cluster.token("api", |claims| claims["aud"] = json!(["https://kubernetes.default.svc"])),
            "not for audience",
        ),
        (Secret::from("opaque".to_owned()), "no JWT"),
    ] {
        let fault = reviewer.review(&token).await.unwrap_err().to_string();
        assert!(fault.contains(why), "{fault}");
    }
    assert!(server.questions.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_is_not_waited_for() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    tokio::time::resume();
    let reviewer = server.reviewer(&cluster);
    let token = cluster.token("api", |_| {});
    server.will(Reply::Never);
    let review = reviewer.review(&token);
    let patience = async {
        while server.questions.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        crate::issuer::tests::cluster::pass(DEADLINE).await;
    };
    let (fault, ()) = tokio::join!(review, patience);
    assert!(fault.unwrap_err().to_string().ends_with("no answer within 5 s"));
}

#[tokio::test]
async fn a_server_that_is_down_or_not_ours() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let reviewer = server.reviewer(&cluster);
    let token = cluster.token("api", |_| {});
    let stranger = ApiServer::start().await;
    write(&cluster.path("ca.crt"), stranger.ca_pem.as_bytes());
    let fault = reviewer.review(&token).await.unwrap_err().to_string();
    assert!(fault.contains("certificate"), "{fault}");
    assert!(server.questions.lock().unwrap().is_empty());
    // The right authority, now.
    write(&cluster.path("ca.crt"), format!("{}{}", stranger.ca_pem, server.ca_pem).as_bytes());
    server.will_answer(201, &good());
    reviewer.review(&token).await.unwrap();

    let down: Uri = "https://127.0.0.1:1".parse().unwrap();
    let reviewer = Kubernetes::new(
        &down,
        cluster.path("ca.crt"),
        cluster.path("token"),
        "countersign".to_owned(),
        clock(),
    );
    let fault = reviewer.review(&token).await.unwrap_err().to_string();
    assert!(fault.starts_with("can't be reviewed: API server 127.0.0.1:1: "), "{fault}");
    assert!(fault.contains("refused"), "{fault}");
}
