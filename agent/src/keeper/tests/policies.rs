//! What a pod may choose: whether withdrawn files stay, and whether it may start with what was read before.

use super::*;

const WIPE: (&str, &str) = ("countersign.dev/on-revoked", "wipe");
const TWO: &[(&str, &str)] =
    &[("secret.countersign.dev/a", "s:a"), ("secret.countersign.dev/b", "s:b"), WIPE];
const STALE_OK: &[(&str, &str)] =
    &[("secret.countersign.dev/a", "s:a"), ("countersign.dev/stale-ok", "true")];

fn denied() -> Error {
    Error::Denied { reference: "s:a".into(), problem: "spiffe://t/ns/n/sa/a may not read it".into() }
}

/// As the pod that asks for it by one key is told.
fn asked(error: Error) -> Error {
    error.asked_by([SECRET[0].0])
}

fn there(dir: &TempDir, name: &str) -> bool {
    dir.path().join(name).symlink_metadata().is_ok()
}

fn scene() -> (Scene, TempDir) {
    let scene = Scene::new();
    scene.sources().put("b", "bee");
    (scene, directory())
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_secret_stays_by_default() {
    let (scene, dir) = scene();
    scene.publish("v", "a", &TWO[..2], Some(dir.path())).await.unwrap();
    scene.sources().remove("a");
    scene.sources().put("b", "bumble");
    tokio::time::sleep(MINUTE * 5).await;
    assert_eq!((read(&dir, "a").as_str(), read(&dir, "b").as_str()), ("one", "bumble"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_secret_is_wiped_when_the_pod_wants_it_so_and_comes_back_with_it() {
    let (scene, dir) = scene();
    scene.publish("v", "a", TWO, Some(dir.path())).await.unwrap();
    scene.sources().remove("a");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!((there(&dir, "a"), read(&dir, "b").as_str()), (false, "bee"));
    // What is left is refreshed as before, and a republish is no reason to fail.
    scene.sources().put("b", "bumble");
    scene.publish("v", "a", TWO, None).await.unwrap();
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!((there(&dir, "a"), read(&dir, "b").as_str()), (false, "bumble"));
    // The generation that held it is gone too.
    let generations = std::fs::read_dir(dir.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
    assert_eq!(generations.count(), 1);
    scene.sources().put("a", "again");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&dir, "a"), "again");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn withdrawn_access_wipes_every_file_that_was_read_with_it() {
    let (scene, dir) = scene();
    let keys = [WIPE, SECRET[0], ("template.countersign.dev/t", r#"x={{ secret("s:a") }}"#)];
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    scene.sources().fail(denied());
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!((there(&dir, "a"), there(&dir, "t")), (false, false));
    scene.sources().heal();
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!((read(&dir, "a").as_str(), read(&dir, "t").as_str()), ("one", "x=one"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_is_not_taken_at_its_first_word() {
    let (scene, dir) = scene();
    scene.publish("v", "a", &[SECRET[0], WIPE], Some(dir.path())).await.unwrap();
    let reads = scene.sources().reads();
    scene.sources().remove("a");
    while scene.sources().reads() < reads + 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Gone at one look, and there again at the next, as in a file's replacement.
    scene.sources().put("a", "two");
    let mut missed = 0;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        missed += usize::from(!there(&dir, "a"));
    }
    assert_eq!((missed, read(&dir, "a").as_str()), (0, "two"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_has_just_started_does_not_wipe_at_a_stores_first_word_either() {
    let (before, dir) = scene();
    before.publish("v", "a", TWO, Some(dir.path())).await.unwrap();
    before.end().await;
    let after = Scene::new();
    after.sources().put("b", "bee");
    after.sources().remove("a");
    after.publish("v", "a", TWO, Some(dir.path())).await.unwrap();
    assert_eq!((after.sources().reads(), read(&dir, "a").as_str()), (2, "one"));
    tokio::time::sleep(MINUTE).await;
    assert_eq!((there(&dir, "a"), read(&dir, "b").as_str()), (false, "bee"));
    after.end().await;
}

#[tokio::test(start_paused = true)]
async fn trouble_that_can_heal_wipes_nothing() {
    let (scene, dir) = scene();
    scene.publish("v", "a", TWO, Some(dir.path())).await.unwrap();
    scene.sources().fail(down());
    tokio::time::sleep(MINUTE * 30).await;
    scene.sources().fail(Error::Unusable { store: "s".into(), problem: "wrong MAC".into() });
    tokio::time::sleep(MINUTE * 30).await;
    assert_eq!((read(&dir, "a").as_str(), read(&dir, "b").as_str()), ("one", "bee"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_about_to_start_waits_whatever_it_wants_wiped() {
    let (scene, dir) = scene();
    scene.sources().remove("a");
    let error = scene.publish("v", "a", TWO, Some(dir.path())).await.unwrap_err();
    assert_eq!((error.code(), std::fs::read_dir(dir.path()).unwrap().count()), (Code::NotFound, 0));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn svids_that_have_ended_are_wiped_and_the_secrets_beside_them_stay() {
    let (scene, dir) = scene();
    let svids = [("svid.countersign.dev/x509", "c,k,b"), ("jwt.countersign.dev/t", "aud"), SECRET[0], WIPE];
    scene.publish("v", "a", &svids, Some(dir.path())).await.unwrap();
    scene.sources().fail_identity(Some(Error::IdentityUnavailable { problem: "connection refused".into() }));
    // The JWT-SVID lives for five minutes, the X.509-SVID for an hour.
    tokio::time::sleep(MINUTE * 7).await;
    assert_eq!((there(&dir, "t"), there(&dir, "k"), read(&dir, "a").as_str()), (false, true, "one"));
    scene.sources().put("a", "two");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&dir, "a"), "two");
    tokio::time::sleep(MINUTE * 53).await;
    assert_eq!((there(&dir, "c"), there(&dir, "k"), there(&dir, "t")), (false, false, false));
    assert_eq!((read(&dir, "b").contains("CERTIFICATE"), read(&dir, "a").as_str()), (true, "two"));
    scene.sources().fail_identity(None);
    tokio::time::sleep(MINUTE * 2).await;
    assert!(there(&dir, "c") && there(&dir, "k") && there(&dir, "t"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_jwt_svid_that_has_ended_does_not_keep_secrets_from_being_refreshed() {
    let (scene, dir) = scene();
    let keys = [("jwt.countersign.dev/t", "aud"), SECRET[0]];
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    scene.sources().fail_identity(Some(Error::IdentityUnavailable { problem: "connection refused".into() }));
    tokio::time::sleep(MINUTE * 10).await;
    scene.sources().put("a", "two");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!((read(&dir, "a").as_str(), read(&dir, "t").as_str()), ("two", "jwt 1 for aud"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts_with_what_the_node_has_read_only_when_it_says_that_it_may() {
    let (scene, first, second) = (Scene::new(), directory(), directory());
    scene.publish("1", "a", SECRET, Some(first.path())).await.unwrap();
    scene.sources().fail(down());
    tokio::time::sleep(MINUTE * 2).await;
    let waits = scene.publish("2", "a", SECRET, Some(second.path())).await.unwrap_err();
    assert_eq!(waits, asked(down()));
    scene.publish("3", "a", STALE_OK, Some(second.path())).await.unwrap();
    assert_eq!(read(&second, "a"), "one");
    scene.sources().put("a", "two");
    scene.sources().heal();
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&second, "a"), "two");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_is_for_the_same_identity_only_and_not_after_a_withdrawal() {
    let (scene, first, second) = (Scene::new(), directory(), directory());
    scene.publish("1", "a", SECRET, Some(first.path())).await.unwrap();
    scene.sources().fail(down());
    tokio::time::sleep(MINUTE * 2).await;
    let other = scene.publish("2", "other", STALE_OK, Some(second.path())).await.unwrap_err();
    assert_eq!(other, asked(down()));
    scene.sources().fail(denied());
    tokio::time::sleep(MINUTE * 2).await;
    let withdrawn = scene.publish("3", "a", STALE_OK, Some(second.path())).await.unwrap_err();
    assert_eq!(withdrawn, asked(denied()));
    assert_eq!(std::fs::read_dir(second.path()).unwrap().count(), 0);
    scene.end().await;
}
