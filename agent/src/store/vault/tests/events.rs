//! Events, by the documented wire: there is no Vault Enterprise that a test could start.

use std::time::Duration;

use tokio::task::JoinSet;

use super::*;
use crate::sources::Stale;

const SUBSCRIBE: &str = "sys/events/subscribe/kv*?json=true";
const ON: &str = "events: true\n";

/// An event of a secret of the mount `kv`.
fn wrote(path: &str) -> String {
    json!({
        "id": "1", "source": "vault://node", "specversion": "1.0", "type": "*",
        "data": {
            "event": { "id": "1", "metadata": {
                "data_path": path, "path": path, "modified": "true", "operation": "data-write", "vault_index": "x",
            } },
            "event_type": "kv-v2/data-write",
            "plugin_info": { "mount_path": "kv/", "plugin": "kv" },
        },
        "datacontentype": "application/cloudevents", "time": "2026-01-01T00:00:00Z",
    })
    .to_string()
}

/// What the store does of its own accord, until it is dropped.
fn run(asker: &Asker) -> JoinSet<()> {
    let store = asker.store.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { store.run(CancellationToken::new()).await });
    tasks
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

fn told(asker: &Asker) -> String {
    asker.held.as_ref().and_then(Held::told).unwrap_or_default()
}

async fn stale(asker: &Asker) -> Stale {
    tokio::time::timeout(Duration::from_secs(60), asker.store.stale()).await.expect("a report")
}

fn subscriptions(server: &Server) -> Vec<Seen> {
    server.taken().into_iter().filter(|seen| seen.path == SUBSCRIBE).collect()
}

#[tokio::test]
async fn what_changed_is_reported_and_nothing_else() {
    let server = Server::start(vault(NOBODY)).await;
    let mut asker = Asker::of(&server, "events: true\nnamespace: team\n");
    let _running = run(&asker);
    asker.fetch("kv/data/app").await;
    asker.fetch("kv1/app").await;
    until("a stream", || server.streams() == 1).await;
    let seen = subscriptions(&server);
    let [stream] = seen.as_slice() else { panic!("one stream of an identity: {seen:?}") };
    assert_eq!((stream.method.as_str(), stream.token()), ("GET", "hvs.1"), "with the pod's own token");
    assert_eq!(stream.header("x-vault-namespace"), "team");
    until("it is known", || told(&asker) == "events: heard").await;
    server.tell("this is no event");
    server.tell(&wrote("kv/data/other"));
    server.tell(&wrote("kv1/app"));
    let reported = stale(&asker).await;
    assert_eq!((reported.spiffe_id.as_str(), &*reported.source.path), (API, "kv1/app"));
}

#[tokio::test]
async fn off_unless_it_is_asked_for_and_not_for_what_is_no_key_value_secret() {
    let server = Server::start(vault(|seen| {
        (seen.path == "transit/x").then(|| say(200, json!({ "data": { "x": "y" } })))
    }))
    .await;
    for (config, path) in [("", "kv/data/app"), (ON, "transit/x")] {
        let mut asker = Asker::of(&server, config);
        let _running = run(&asker);
        asker.fetch(path).await;
        asker.fetch(path).await;
        assert_eq!((told(&asker).as_str(), server.streams()), ("", 0), "{path}");
    }
    assert!(subscriptions(&server).is_empty());
}

/// What happened while nobody listened is looked for.
#[tokio::test]
async fn a_broken_stream_is_opened_again_and_what_was_missed_is_looked_for() {
    let server = Server::start(vault(NOBODY)).await;
    let mut asker = Asker::of(&server, ON);
    let _running = run(&asker);
    asker.fetch("kv/data/app").await;
    until("a stream", || server.streams() == 1).await;
    server.hang_up();
    until("another", || subscriptions(&server).len() == 1 && server.streams() == 1).await;
    until("it is known", || told(&asker) == "events: heard").await;
    pass(Duration::from_secs(31)).await;
    assert_eq!(&*stale(&asker).await.source.path, "kv/data/app");
}

#[tokio::test]
async fn it_ends_with_the_last_who_needs_it() {
    let server = Server::start(vault(NOBODY)).await;
    let mut asker = Asker::of(&server, ON);
    let _running = run(&asker);
    asker.fetch("kv/data/app").await;
    let first = asker.held.clone();
    asker.fetch("kv1/app").await;
    until("a stream", || server.streams() == 1).await;
    asker.held = None;
    assert!(first.is_some());
    server.tell(&wrote("kv/data/app"));
    assert_eq!(&*stale(&asker).await.source.path, "kv/data/app", "one is left");
    drop(first);
    until("no stream", || server.streams() == 0).await;
}

/// Said once, shown to who asks, and not tried again and again.
#[tokio::test]
async fn refusals_are_explained() {
    for (answer, why) in [
        (errors(403, &["permission denied"]), "sys/events/subscribe/kv*"),
        (errors(404, &["no handler for route"]), "404: no handler for route"),
        (say(200, json!({ "data": {} })), "NOT heard"),
        (say(307, Value::Null).with("location", "https://elsewhere/v1/x?y"), "redirects"),
    ] {
        let status = answer.status;
        let server = Server::start(vault(move |seen| (seen.path == SUBSCRIBE).then(|| answer.clone()))).await;
        let mut asker = Asker::of(&server, ON);
        let _running = run(&asker);
        asker.fetch("kv/data/app").await;
        until("an answer", || told(&asker).contains(why)).await;
        assert!(!told(&asker).contains("hvs."), "{}", told(&asker));
        asker.fetch("kv/data/app").await;
        if matches!(status, 403 | 404) {
            assert_eq!(subscriptions(&server).len(), 1, "{status}");
        }
    }
}

/// A stream lives no longer than its token: when the session has another, so has the stream.
#[tokio::test]
async fn another_token_is_another_stream() {
    let server = Server::start(vault(|seen| {
        (seen.path == "auth/token/renew-self").then(|| errors(403, &["permission denied"]))
    }))
    .await;
    let mut asker = Asker::of(&server, ON);
    let _running = run(&asker);
    asker.fetch("kv/data/app").await;
    until("a stream", || server.streams() == 1).await;
    assert_eq!(subscriptions(&server).len(), 1);
    pass(Duration::from_secs(2500)).await;
    asker.fetch("kv/data/app").await;
    tokio::time::pause();
    let found = async {
        loop {
            if let Some(seen) = subscriptions(&server).first() {
                return seen.token().to_owned();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(found.await, "hvs.2");
}
