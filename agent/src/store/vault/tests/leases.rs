use std::sync::Mutex;

use super::*;

/// Credentials of a database engine: each read makes another.
fn database(lease: u64, renewed: u64) -> impl FnMut(&Seen) -> Option<Say> + Send + 'static {
    let mut made = 0;
    vault(move |seen| {
        Some(match seen.path.as_str() {
            "database/creds/app" => {
                made += 1;
                say(
                    200,
                    json!({ "lease_id": format!("database/creds/app/{made}"), "lease_duration": lease, "renewable": true,
                            "data": { "username": format!("u{made}"), "password": "p" } }),
                )
            }
            "sys/leases/renew" => say(
                200,
                json!({ "lease_id": seen.body["lease_id"], "lease_duration": renewed, "renewable": true }),
            ),
            _ => return None,
        })
    })
}

async fn leased(server: &Server) -> Asker {
    let mut asker = Asker::of(server, "leaseOverlap: 30s\n");
    assert!(matches!(asker.answer("database/creds/app").await, Ok(Answer::Apart)));
    asker.alone = true;
    asker
}

fn username(fetched: &Fetched) -> String {
    text_of(fetched, "username")
}

#[tokio::test]
async fn a_credential_has_a_login_of_its_own_and_is_kept() {
    let server = Server::start(database(600, 600)).await;
    let mut asker = leased(&server).await;
    server.lines();
    let first = asker.fetch("database/creds/app").await;
    let seen = server.taken();
    assert_eq!(
        seen.iter().map(|seen| seen.path.as_str()).collect::<Vec<_>>(),
        ["auth/jwt/login", "database/creds/app"]
    );
    assert_eq!((username(&first).as_str(), seen[1].token()), ("u1", "hvs.2"));
    assert!(
        matches!(first.fresh, Fresh::AtMost(span) if (350..=401).contains(&span.as_secs())),
        "{:?}",
        first.fresh
    );
    let second = asker.fetch("database/creds/app").await;
    assert_eq!(server.lines(), ["POST sys/leases/lookup"]);
    assert!(Arc::ptr_eq(&first.document, &second.document) && first.version == second.version);
    pass(Duration::from_secs(401)).await;
    asker.fetch("database/creds/app").await;
    let seen = server.taken();
    assert_eq!(seen.iter().map(|seen| seen.path.as_str()).collect::<Vec<_>>(), ["sys/leases/renew"]);
    assert_eq!(seen[0].body, json!({ "lease_id": "database/creds/app/1", "increment": 600 }));
    assert_eq!(seen[0].token(), "hvs.2");
}

#[tokio::test]
async fn near_its_greatest_ttl_a_credential_is_replaced_and_lives_on_for_the_overlap() {
    let server = Server::start(database(600, 300)).await;
    let mut asker = leased(&server).await;
    asker.fetch("database/creds/app").await;
    let before = asker.held.clone();
    pass(Duration::from_secs(401)).await;
    let kept = asker.fetch("database/creds/app").await;
    assert_eq!(username(&kept), "u1", "300 s are granted, less than was asked for, and good for a while");
    assert!(
        matches!(kept.fresh, Fresh::AtMost(span) if (235..=241).contains(&span.as_secs())),
        "{:?}",
        kept.fresh
    );
    pass(Duration::from_secs(241)).await;
    server.lines();
    let next = asker.fetch("database/creds/app").await;
    assert_eq!(username(&next), "u2");
    let shutdown = CancellationToken::new();
    let revoked =
        || server.taken().iter().any(|seen| seen.path == "auth/token/revoke-self" && seen.token() == "hvs.2");
    let store = asker.store.clone();
    let work = async {
        // Files are made from it yet.
        assert!(before.is_some() && !revoked());
        drop(before);
        tokio::task::yield_now().await;
        pass(Duration::from_secs(29)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!revoked(), "readers of the old files may still use it");
        pass(Duration::from_secs(2)).await;
        while !revoked() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shutdown.cancel();
    };
    tokio::join!(store.run(shutdown.clone()), work);
}

#[tokio::test]
async fn what_was_revoked_under_us_is_noticed_and_replaced() {
    let server = Server::start(database(600, 600)).await;
    let mut asker = leased(&server).await;
    asker.fetch("database/creds/app").await;
    for (path, status) in [("sys/leases/lookup", 400), ("auth/token/lookup-self", 403)] {
        let mut inner = database(600, 600);
        server.now_says(move |seen| match seen.path.as_str() {
            "sys/leases/lookup" if status == 403 => Some(errors(403, &["permission denied"])),
            seen_path if seen_path == path => Some(errors(status, &["invalid lease"])),
            "database/creds/app" => Some(say(
                200,
                json!({ "lease_id": format!("new/{status}"), "lease_duration": 600, "renewable": true, "data": { "username": format!("after{status}") } }),
            )),
            _ => inner(seen),
        });
        assert_eq!(username(&asker.fetch("database/creds/app").await), format!("after{status}"));
    }
}

#[tokio::test]
async fn trouble_with_a_renewal_leaves_the_credential_until_it_is_about_to_end() {
    let server = Server::start(database(600, 600)).await;
    let mut asker = leased(&server).await;
    asker.fetch("database/creds/app").await;
    server.now_says(vault(|_| Some(errors(503, &["Vault is sealed"]))));
    pass(Duration::from_secs(401)).await;
    assert!(matches!(asker.refusal("database/creds/app").await, Error::StoreUnavailable { .. }));
    server.now_says(database(600, 600));
    assert_eq!(username(&asker.fetch("database/creds/app").await), "u1", "renewed after all");
    server.lines();
}

#[tokio::test]
async fn the_end_of_the_login_is_the_end_of_the_lease() {
    let mut inner = database(3600, 3600);
    let mut logins = 0;
    let server = Server::start(move |seen: &Seen| match seen.path.as_str() {
        "auth/jwt/login" => {
            logins += 1;
            Some(login(logins, 600))
        }
        "auth/token/renew-self" => Some(errors(400, &["lease is not renewable"])),
        _ => inner(seen),
    })
    .await;
    let mut asker = leased(&server).await;
    let first = asker.fetch("database/creds/app").await;
    assert!(matches!(first.fresh, Fresh::AtMost(span) if span.as_secs() <= 401), "{:?}", first.fresh);
    pass(Duration::from_secs(401)).await;
    let kept = asker.fetch("database/creds/app").await;
    assert_eq!(username(&kept), "u1");
    assert!(
        matches!(kept.fresh, Fresh::AtMost(span) if (130..=140).contains(&span.as_secs())),
        "{:?}",
        kept.fresh
    );
    pass(Duration::from_secs(140)).await;
    assert_eq!(username(&asker.fetch("database/creds/app").await), "u2");
}

#[tokio::test]
async fn a_lease_nobody_expected_does_not_hang_on_the_shared_token() {
    let mut made = 0;
    let server = Server::start(vault(move |seen| {
        (seen.path == "odd/thing").then(|| {
            made += 1;
            say(200, json!({ "lease_id": format!("odd/{made}"), "lease_duration": 600, "renewable": false, "data": { "username": format!("o{made}") } }))
        })
    }))
    .await;
    let mut asker = Asker::of(&server, "");
    assert!(matches!(asker.answer("odd/thing").await, Ok(Answer::Apart)));
    asker.alone = true;
    let fetched = asker.fetch("odd/thing").await;
    assert_eq!(username(&fetched), "o2");
    let seen = server.taken();
    let reads: Vec<_> = seen.iter().filter(|seen| seen.path == "odd/thing").map(Seen::token).collect();
    assert_eq!(reads, ["hvs.1", "hvs.2"]);
}

#[tokio::test]
async fn what_has_no_lease_after_all_needs_no_login_of_its_own() {
    let server = Server::start(vault(|seen| {
        (seen.path == "database/creds/app").then(|| say(200, json!({ "data": { "username": "fixed" } })))
    }))
    .await;
    let mut asker = leased(&server).await;
    asker.fetch("database/creds/app").await;
    server.lines();
    asker.fetch("database/creds/app").await;
    assert_eq!(server.lines(), ["GET database/creds/app"]);
}

#[tokio::test]
async fn a_revocation_is_tried_until_it_succeeds_and_given_up_when_it_cannot() {
    let refusals = Arc::new(Mutex::new(2));
    let left = Arc::clone(&refusals);
    let mut inner = database(600, 600);
    let server = Server::start(move |seen: &Seen| {
        let mut left = left.lock().unwrap();
        if seen.path == "auth/token/revoke-self" && *left > 0 {
            *left -= 1;
            return Some(errors(500, &["storage is down"]));
        }
        inner(seen)
    })
    .await;
    let mut asker = leased(&server).await;
    asker.fetch("database/creds/app").await;
    let families = Families::default();
    let shutdown = CancellationToken::new();
    let store = asker.store.clone();
    let work = async {
        asker.held = None;
        for _ in 0..2 {
            while !server.taken().iter().any(|seen| seen.path == "auth/token/revoke-self") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            pass(Duration::from_secs(5)).await;
        }
        while !server.taken().iter().any(|seen| seen.path == "auth/token/revoke-self") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shutdown.cancel();
    };
    tokio::join!(store.run(shutdown.clone()), work);
    assert_eq!(*refusals.lock().unwrap(), 0);
    drop(families);
}

#[tokio::test]
async fn the_end_of_the_agent_revokes_nothing() {
    let server = Server::start(database(600, 600)).await;
    let mut asker = leased(&server).await;
    asker.fetch("database/creds/app").await;
    let shutdown = CancellationToken::new();
    let store = asker.store.clone();
    let work = async {
        tokio::task::yield_now().await;
        shutdown.cancel();
        asker.held = None;
    };
    tokio::join!(store.run(shutdown.clone()), work);
    assert!(!server.lines().iter().any(|line| line.contains("revoke")), "pods live on with what they have");
}
