use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::client::{DEADLINE, MAX_ANSWER};
use super::testing::{ApiServer, Reply};
use super::*;
use crate::issuer::tests::cluster::{Cluster, clock, pass, write};
use crate::secret::Secret;

const PATH: &str = "/api/v1/namespaces/ns/configmaps/bundle";

fn object() -> ObjectName {
    ObjectName::namespaced(Resource::ConfigMaps, "ns/bundle").unwrap()
}

fn map(value: &str) -> Value {
    json!({"metadata": {"name": "bundle"}, "data": {"key": value}})
}

#[tokio::test]
async fn the_exact_requests() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let api = server.api(cluster.dir.path(), clock());
    let made: ConfigMap = api.create("/api/v1/namespaces/ns/configmaps", &map("one"), None).await.unwrap();
    assert_eq!(made.data["key"], "one");
    let patch =
        json!({"metadata": {"resourceVersion": made.metadata.resource_version}, "data": {"key": "two"}});
    let changed: ConfigMap = api.patch(PATH, Patch::Merge, &patch).await.unwrap();
    assert_eq!(changed.data["key"], "two");
    let error = api.patch::<ConfigMap>(PATH, Patch::Merge, &patch).await.unwrap_err();
    assert!(error.is_conflict(), "{error}");
    let read: ConfigMap = api.get(PATH).await.unwrap();
    assert_eq!(read, changed);
    write(&cluster.path("token"), b"rotated-token");
    assert!(api.get::<ConfigMap>(&format!("{PATH}x")).await.unwrap_err().is_missing());
    let heads: Vec<_> = server.questions().iter().map(|question| question["head"].clone()).collect();
    let head = |method: &str, path: &str, token: &str, media: Value| {
        json!({
            "method": method, "path": path, "authorization": format!("Bearer {token}"),
            "content-type": media, "accept": "application/json",
            "user-agent": concat!("countersign-agent/", env!("CARGO_PKG_VERSION"), " (agent)"),
        })
    };
    assert_eq!(
        heads,
        [
            head("POST", "/api/v1/namespaces/ns/configmaps", "own-token", json!("application/json")),
            head("PATCH", PATH, "own-token", json!("application/merge-patch+json")),
            head("PATCH", PATH, "own-token", json!("application/merge-patch+json")),
            head("GET", PATH, "own-token", json!(null)),
            head("GET", &format!("{PATH}x"), "rotated-token", json!(null)),
        ]
    );
}

#[tokio::test]
async fn each_fault_says_who_what_and_why() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let api = server.api(cluster.dir.path(), clock());
    let get = async || api.get::<ConfigMap>(PATH).await.unwrap_err();
    for (reply, why) in [
        (
            Reply::Answer(401, testing::refusal("Unauthorized").to_string()),
            "it answered 401 Unauthorized: Unauthorized",
        ),
        (
            Reply::Answer(403, testing::refusal("configmaps \"bundle\" is forbidden").to_string()),
            "it answered 403 Forbidden: configmaps \"bundle\" is forbidden",
        ),
        (
            Reply::Answer(429, testing::refusal("slow down").to_string()),
            "it answered 429 Too Many Requests: slow down",
        ),
        (Reply::Answer(500, "<html>".to_owned()), "it answered 500 Internal Server Error"),
        (
            Reply::Answer(500, testing::refusal("who is own-token\u{7}?").to_string()),
            "it answered 500 Internal Server Error: who is (token)?",
        ),
        (Reply::Answer(200, "<html>".to_owned()), "it answered something that can't be read"),
        (Reply::Answer(200, " ".repeat(MAX_ANSWER + 1)), "its answer broke off or is too long"),
        (Reply::Redirect("https://elsewhere.example.org/".to_owned()), "it answered 307 Temporary Redirect"),
    ] {
        server.will(reply);
        let error = get().await;
        assert_eq!(error.to_string(), format!("API server {}: {why}", server.address));
    }
    assert_eq!(server.questions().len(), 8, "no redirect was followed, nothing was asked twice");
    std::fs::remove_file(cluster.path("token")).unwrap();
    let bare = Cluster::new();
    let lost = Arc::new(Api::new(
        Server { token: bare.path("none"), ..server.server(bare.dir.path()) },
        Caller::Agent,
        clock(),
    ));
    let error = lost.get::<ConfigMap>(PATH).await.unwrap_err().to_string();
    assert!(
        error.starts_with("API server token ") && error.ends_with("none: can't be read: entity not found")
    );
    let nowhere = Server { url: "https://127.0.0.1:1".parse().unwrap(), ..server.server(bare.dir.path()) };
    let error =
        Api::new(nowhere, Caller::Agent, clock()).get::<ConfigMap>(PATH).await.unwrap_err().to_string();
    assert!(error.starts_with("API server 127.0.0.1:1: ") && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn nobody_asks_before_the_time_that_the_server_has_named() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let api = server.api(cluster.dir.path(), clock());
    server.put(PATH, map("one"));
    let get = async || api.get::<ConfigMap>(PATH).await;
    server.will(Reply::RetryAfter(429, 7));
    let told = get().await.unwrap_err();
    assert_eq!(told.retry_after(), Some(Duration::from_secs(7)));
    // Whatever is asked for, the answer is what was last said, with what is left of the time.
    pass(Duration::from_secs(4)).await;
    let held = api.create::<Value>("/x", &json!({}), None).await.unwrap_err();
    assert_eq!(held.to_string(), told.to_string());
    assert!(held.retry_after().unwrap() <= Duration::from_secs(3), "{held:?}");
    assert_eq!(server.questions().len(), 1);
    pass(Duration::from_secs(3)).await;
    get().await.unwrap();
    server.will(Reply::RetryAfter(503, u64::MAX));
    assert_eq!(get().await.unwrap_err().retry_after(), Some(Duration::from_secs(300)), "not for ever");
    pass(Duration::from_secs(300)).await;
    get().await.unwrap();
    assert_eq!(server.questions().len(), 4);
}

#[tokio::test]
async fn what_is_secret_in_a_question_is_in_no_error() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let api = server.api(cluster.dir.path(), clock());
    // Longer than any message that is handed on: it must be hidden before the rest is cut off.
    let secret = Secret::from("s3cr3t".repeat(100));
    let text = std::str::from_utf8(secret.expose()).unwrap();
    server.will_refuse(500, &format!("choked on {text}"));
    let error = api.create::<Value>("/x", &json!({}), Some(&secret)).await.unwrap_err();
    assert!(error.to_string().ends_with("choked on (token)"), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_answer() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let api = server.api(cluster.dir.path(), clock());
    server.will(Reply::Never);
    let patience = async {
        while server.questions().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        pass(DEADLINE).await;
    };
    let (result, ()) = tokio::join!(api.get::<ConfigMap>(PATH), patience);
    assert!(result.unwrap_err().to_string().ends_with("no answer within 5 s"));
}

/// What a follower says, one word each.
fn followed(
    api: Arc<Api>,
    shutdown: CancellationToken,
) -> (mpsc::UnboundedReceiver<String>, tokio::task::JoinSet<()>) {
    let (tell, told) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        follow::<ConfigMap>(&api, &object(), &shutdown, |look| {
            let word = match look {
                Look::Is(map) => map.data["key"].clone(),
                Look::Missing => "missing".to_owned(),
                Look::Failed(error) => {
                    error.status().map_or("failed".to_owned(), |status| status.as_u16().to_string())
                }
            };
            tell.send(word).unwrap();
        })
        .await;
    });
    (told, tasks)
}

#[tokio::test]
async fn an_object_is_followed_through_its_life_and_the_servers_moods() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    let shutdown = CancellationToken::new();
    server.will_refuse(403, "not yet");
    let (mut told, mut tasks) = followed(server.api(cluster.dir.path(), clock()), shutdown.clone());
    let mut next = async || told.recv().await.unwrap();
    assert_eq!(next().await, "403");
    assert_eq!(next().await, "missing");
    server.put(PATH, map("one"));
    assert_eq!(next().await, "one");
    server.put("/api/v1/namespaces/ns/configmaps/other", map("other"));
    server.put(PATH, map("two"));
    assert_eq!(next().await, "two");
    // Ended without a word: listed again, and nothing that happened meanwhile is lost.
    server.cut_watches();
    assert_eq!(next().await, "two");
    server.put(PATH, map("three"));
    assert_eq!(next().await, "three");
    server.remove(PATH);
    assert_eq!(next().await, "missing");
    // A version that is too old to go on from.
    server.cut_watches();
    assert_eq!(next().await, "missing");
    server.put(PATH, map("four"));
    assert_eq!(next().await, "four");
    shutdown.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_watch_that_begins_with_an_error_is_a_list_again() {
    let (cluster, server) = (Cluster::new(), ApiServer::start().await);
    server.put(PATH, map("one"));
    let list = json!({"metadata": {"resourceVersion": "1"}, "items": [map("one")]});
    server.will_answer(200, &list);
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}});
    server.will(Reply::Answer(200, format!("{gone}\n")));
    server.will_answer(200, &list);
    server.will(Reply::Answer(200, "nonsense\n".to_owned()));
    let shutdown = CancellationToken::new();
    let (mut told, mut tasks) = followed(server.api(cluster.dir.path(), clock()), shutdown.clone());
    let mut next = async || told.recv().await.unwrap();
    assert_eq!(next().await, "one");
    assert_eq!(next().await, "one");
    assert_eq!(next().await, "failed");
    assert_eq!(next().await, "one");
    shutdown.cancel();
    tasks.join_next().await.unwrap().unwrap();
}
