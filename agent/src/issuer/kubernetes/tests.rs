//! Reviews against a stand-in of the API server, over real TLS.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::issuer::tests::cluster::{Cluster, NOW, clock, write};
use crate::kubernetes::Caller;
use crate::kubernetes::testing::{ApiServer, Reply, refusal as status};

const DEADLINE: Duration = crate::kubernetes::DEADLINE;

fn reviewer(server: &ApiServer, cluster: &Cluster) -> Kubernetes {
    let api = Api::new(server.server(cluster.dir.path()), Caller::Issuer, clock());
    Kubernetes::new(Arc::new(api), "countersign".to_owned())
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
    let reviewer = reviewer(&server, &cluster);
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
            "user-agent": concat!("countersign-agent/", env!("CARGO_PKG_VERSION"), " (issuer)"),
        },
        "body": {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": text, "audiences": ["countersign"]},
        },
    });
    assert_eq!(server.questions(), [expected]);
    // The token rotates.
    write(&cluster.path("token"), b"rotated-token");
    server.will_answer(201, &good());
    reviewer.review(&token).await.unwrap();
    assert_eq!(server.questions()[1]["head"]["authorization"], "Bearer rotated-token");
}

#[tokio::test]
async fn answers_that_grant_nothing() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let reviewer = reviewer(&server, &cluster);
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
    let reviewer = reviewer(&server, &cluster);
    let token = cluster.token("api", |_| {});
    let text = std::str::from_utf8(token.expose()).unwrap();
    let refusal = |code: u16, message: &str| Reply::Answer(code, status(message).to_string());
    for (reply, why) in [
        (
            refusal(401, "Unauthorized"),
            "it answered 401 Unauthorized: Unauthorized; the token of --kubernetes-token is not accepted",
        ),
        (
            refusal(403, "tokenreviews is forbidden"),
            "it answered 403 Forbidden: tokenreviews is forbidden; the issuer's service account needs the right to create tokenreviews",
        ),
        (refusal(429, "slow down"), "it answered 429 Too Many Requests: slow down"),
        (
            refusal(500, &format!("etcd choked on {text}")),
            "it answered 500 Internal Server Error: etcd choked on (token)",
        ),
        (Reply::Answer(500, "<html>".to_owned()), "it answered 500 Internal Server Error"),
        (Reply::Answer(201, "<html>".to_owned()), "it answered something that can't be read"),
        (Reply::Answer(201, "{}".to_owned()), "it answered a TokenReview without a status"),
        (Reply::Redirect("https://elsewhere.example.org/".to_owned()), "it answered 307 Temporary Redirect"),
    ] {
        server.will(reply);
        let fault = reviewer.review(&token).await.unwrap_err();
        let expected = format!("can't be reviewed: API server {}: {why}", server.address);
        assert_eq!(fault.to_string(), expected);
        assert!(matches!(fault, TokenFault::Unreviewed(_)));
    }
    let asked = server.questions().len();
    assert_eq!(asked, 8, "no redirect was followed, nothing was asked twice");
}

#[tokio::test]
async fn hopeless_tokens_are_not_asked_about() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let reviewer = reviewer(&server, &cluster);
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
    assert!(server.questions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_is_not_waited_for() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    tokio::time::resume();
    let reviewer = reviewer(&server, &cluster);
    let token = cluster.token("api", |_| {});
    server.will(Reply::Never);
    let review = reviewer.review(&token);
    let patience = async {
        while server.questions().is_empty() {
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
    let reviewer = reviewer(&server, &cluster);
    let token = cluster.token("api", |_| {});
    let stranger = ApiServer::start().await;
    write(&cluster.path("ca.crt"), stranger.ca_pem.as_bytes());
    let fault = reviewer.review(&token).await.unwrap_err().to_string();
    assert!(fault.contains("certificate"), "{fault}");
    assert!(server.questions().is_empty());
    // The right authority, now.
    write(&cluster.path("ca.crt"), format!("{}{}", stranger.ca_pem, server.ca_pem).as_bytes());
    server.will_answer(201, &good());
    reviewer.review(&token).await.unwrap();

    let mut down = server.server(cluster.dir.path());
    down.url = "https://127.0.0.1:1".parse().unwrap();
    let reviewer = Kubernetes::new(
        std::sync::Arc::new(Api::new(down, Caller::Issuer, clock())),
        "countersign".to_owned(),
    );
    let fault = reviewer.review(&token).await.unwrap_err().to_string();
    assert!(fault.starts_with("can't be reviewed: API server 127.0.0.1:1: "), "{fault}");
    assert!(fault.contains("refused"), "{fault}");
}
