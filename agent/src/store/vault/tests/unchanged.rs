//! A secret that did not change stays at the server.

use std::sync::atomic::AtomicU64;

use super::*;

const SECRET: &str = "GET kv/data/app";
const METADATA: &str = "GET kv/metadata/app";
const CAPABILITIES: &str = "POST sys/capabilities-self";

fn allows(capability: &str) -> Say {
    say(200, json!({ "data": { "kv/metadata/app": [capability], "capabilities": [capability] } }))
}

/// Metadata of two versions, of which `current` is the one in use.
fn metadata(current: u64, deleted: &str) -> Say {
    let version =
        json!({ "created_time": "2026-01-01T00:00:00Z", "deletion_time": deleted, "destroyed": false });
    say(200, json!({ "data": { "current_version": current, "versions": { "1": version, "2": version } } }))
}

/// A server with one secret at the version that is stored in the counter.
async fn versioned(capability: &'static str) -> (Server, Arc<AtomicU64>) {
    let current = Arc::new(AtomicU64::new(1));
    let version = Arc::clone(&current);
    let server = Server::start(vault(move |seen| {
        let version = version.load(Ordering::SeqCst);
        Some(match seen.path.as_str() {
            "sys/capabilities-self" => {
                assert_eq!(seen.body, json!({ "paths": ["kv/metadata/app"] }));
                allows(capability)
            }
            "kv/metadata/app" => metadata(version, ""),
            "kv/data/app" => secret(version, &json!({ "password": format!("v{version}") })),
            _ => return None,
        })
    }))
    .await;
    (server, current)
}

#[tokio::test]
async fn only_what_changed_is_read_again() {
    let (server, current) = versioned("read").await;
    let mut asker = Asker::of(&server, "");
    let first = asker.fetch("kv/data/app").await;
    server.lines();
    let second = asker.answer("kv/data/app").await;
    let Ok(Answer::Kept(second)) = second else { panic!("{second:?}") };
    assert_eq!(server.lines(), [CAPABILITIES, METADATA]);
    assert!(Arc::ptr_eq(&first.document, &second.document), "one copy in memory");
    assert_eq!((&first.version, first.fresh), (&second.version, second.fresh));
    asker.fetch("kv/data/app").await;
    assert_eq!(server.lines(), [METADATA], "what is allowed is known");
    current.store(2, Ordering::SeqCst);
    assert_eq!(text_of(&asker.fetch("kv/data/app").await, "password"), "v2");
    assert_eq!(server.lines(), [METADATA, SECRET]);
    asker.held = None;
    asker.fetch("kv/data/app").await;
    assert_eq!(server.lines(), [SECRET], "nothing is known of a secret that nobody holds");
}

/// A server that does not say what is mounted, as one that is asked without a token does not: the answer's shape tells.
#[tokio::test]
async fn without_a_login_the_metadata_is_simply_tried() {
    let server = Server::start(vault(|seen| {
        assert_eq!(seen.header("x-vault-inline-auth-path"), "auth/jwt/login");
        let allowed = seen.path.ends_with("app");
        Some(match seen.path.as_str() {
            path if path.starts_with("sys/") => errors(403, &["permission denied"]),
            "a/kv/metadata/app" => metadata(1, ""),
            "a/kv/metadata/other" => errors(403, &["permission denied"]),
            "plain/data/x" => say(200, json!({ "data": { "x": allowed } })),
            _ => secret(1, &json!({ "password": "v1" })),
        })
    }))
    .await;
    let mut asker = Asker::of(&server, "login: {method: inline}\n");
    for (path, looks) in [
        ("a/kv/data/app", ["GET a/kv/data/app", "GET a/kv/metadata/app", "GET a/kv/metadata/app"].as_slice()),
        (
            "a/kv/data/other",
            &["GET a/kv/data/other", "GET a/kv/metadata/other", "GET a/kv/data/other", "GET a/kv/data/other"],
        ),
        ("plain/data/x", &["GET plain/data/x", "GET plain/data/x", "GET plain/data/x"]),
    ] {
        asker.held = None;
        for _ in 0..3 {
            asker.fetch(path).await;
        }
        let lines = server.lines();
        assert_eq!(lines.iter().filter(|line| !line.contains(" sys/")).collect::<Vec<_>>(), looks);
    }
}

/// Metadata does not show that the secret itself may not be read any more.
#[tokio::test]
async fn one_look_of_ten_is_a_read() {
    let (server, _) = versioned("read").await;
    let mut asker = Asker::of(&server, "");
    for _ in 0..=20 {
        asker.fetch("kv/data/app").await;
    }
    let lines = server.lines();
    let count = |wanted: &str| lines.iter().filter(|line| *line == wanted).count();
    assert_eq!((count(CAPABILITIES), count(SECRET), count(METADATA)), (1, 3, 18));
}

#[tokio::test]
async fn where_metadata_may_not_be_read_that_is_remembered() {
    let (server, _) = versioned("deny").await;
    let mut asker = Asker::of(&server, "");
    asker.fetch("kv/data/app").await;
    server.lines();
    asker.fetch("kv/data/app").await;
    asker.fetch("kv/data/app").await;
    assert_eq!(server.lines(), [CAPABILITIES, SECRET, SECRET], "never tried against the policy");
    // A server that denies what it said would be allowed.
    server.now_says(vault(|seen| match seen.path.as_str() {
        "sys/capabilities-self" => Some(allows("read")),
        "kv/metadata/app" => Some(errors(403, &["permission denied"])),
        _ => None,
    }));
    asker.held = None;
    for _ in 0..3 {
        asker.fetch("kv/data/app").await;
    }
    let lines = server.lines();
    assert_eq!(
        lines.iter().filter(|line| *line != "POST auth/token/revoke-self").collect::<Vec<_>>(),
        [SECRET, CAPABILITIES, METADATA, SECRET, SECRET]
    );
}

#[tokio::test]
async fn versions_that_are_pinned_deleted_or_end() {
    let ends = humantime::format_rfc3339(Clock::system().wall() + Duration::from_secs(100)).to_string();
    let (server, current) = versioned("read").await;
    let mut asker = Asker::of(&server, "");
    server.now_says(vault(|seen| match seen.path.as_str() {
        "sys/capabilities-self" => Some(allows("read")),
        "kv/metadata/app" => Some(metadata(2, "")),
        "kv/data/app?version=1" => Some(secret(1, &json!({ "password": "v1" }))),
        _ => None,
    }));
    asker.fetch("kv/data/app?version=1").await;
    assert!(matches!(asker.answer("kv/data/app?version=1").await, Ok(Answer::Kept(_))), "pinned");
    current.store(2, Ordering::SeqCst);
    server.now_says(vault(move |seen| match seen.path.as_str() {
        "sys/capabilities-self" => Some(allows("read")),
        "kv/metadata/app" => Some(metadata(1, &ends)),
        _ => None,
    }));
    asker.held = None;
    asker.fetch("kv/data/app").await;
    let fresh = asker.fetch("kv/data/app").await.fresh;
    assert!(
        matches!(fresh, Fresh::AtMost(span) if (99..=101).contains(&span.as_secs())),
        "looked at again at its end: {fresh:?}"
    );
    server.now_says(vault(|seen| match seen.path.as_str() {
        "kv/metadata/app" => Some(metadata(1, "2026-01-02T00:00:00Z")),
        "kv/data/app" => Some(errors(404, &[])),
        _ => None,
    }));
    assert!(matches!(asker.refusal("kv/data/app").await, Error::NotFound { .. }), "deleted");
}
