//! What a pod's volumes do when its identity changes by itself.

use super::*;
use crate::testing::identity;

const SVID: &[(&str, &str)] = &[("svid.countersign.dev/x509", "c,k,b"), ("secret.countersign.dev/a", "s:a")];

pub(super) fn workload(sa: &str) -> Workload {
    Workload {
        namespace: "n".into(),
        pod_name: "p".into(),
        pod_uid: "u".into(),
        service_account: sa.into(),
        hint: None,
    }
}

/// Long enough for a turn, and too short for anything to be due.
pub(super) async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_push_starts_the_turns_of_the_pods_volumes_at_once_and_of_no_others() {
    let (scene, mine, theirs) = (Scene::new(), directory(), directory());
    scene.publish("1", "a", SVID, Some(mine.path())).await.unwrap();
    scene.publish("2", "b", SVID, Some(theirs.path())).await.unwrap();
    let before = (read(&mine, "k"), read(&theirs, "k"));
    scene.sources().push(&workload("a"), Some(identity("spiffe://t/ns/n/sa/a").x509));
    a_moment().await;
    let after = (read(&mine, "k"), read(&theirs, "k"));
    assert!(after.0 != before.0 && after.1 == before.1);
    assert_eq!((scene.sources().signed(), scene.sources().reads()), (3, 2));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_push_during_a_turn_is_not_lost() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().delay(Duration::from_secs(5));
    let keys = [SVID[0], SVID[1]];
    let push = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.sources().push(&workload("a"), Some(identity("spiffe://t/ns/n/sa/a").x509));
    };
    let (published, ()) = tokio::join!(scene.publish("v", "a", &keys, Some(dir.path())), push);
    published.unwrap();
    a_moment().await;
    assert_eq!(scene.sources().signed(), 2);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_identity_asks_no_store_any_more_and_its_files_follow_the_pods_policy() {
    let (scene, kept, wiped) = (Scene::new(), directory(), directory());
    let wipe = [SVID[0], SVID[1], ("countersign.dev/on-revoked", "wipe")];
    scene.publish("1", "a", SVID, Some(kept.path())).await.unwrap();
    scene.publish("2", "a", &wipe, Some(wiped.path())).await.unwrap();
    let reads = scene.sources().reads();
    let withdrawn = Error::IdentityWithdrawn { problem: "no entry any more".into() };
    scene.sources().fail_identity(Some(withdrawn));
    scene.sources().push(&workload("a"), None);
    a_moment().await;
    let there = |dir: &TempDir, name| dir.path().join(name).symlink_metadata().is_ok();
    assert!(there(&kept, "k") && there(&kept, "c"));
    assert!(!there(&wiped, "k") && !there(&wiped, "c") && there(&wiped, "b"));
    tokio::time::sleep(MINUTE * 10).await;
    assert_eq!(
        (scene.sources().reads(), read(&kept, "a"), read(&wiped, "a")),
        (reads, "one".into(), "one".into())
    );
    scene.sources().fail_identity(None);
    scene.sources().push(&workload("a"), Some(identity("spiffe://t/ns/n/sa/a").x509));
    a_moment().await;
    assert!(there(&wiped, "k") && there(&wiped, "c"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn somebody_else_reads_with_his_own_eyes() {
    let (scene, dir) = (Scene::new(), directory());
    scene.publish("v", "a", SVID, Some(dir.path())).await.unwrap();
    let reads = scene.sources().reads();
    scene.sources().name("spiffe://t/another");
    scene.sources().push(&workload("a"), Some(identity("spiffe://t/another").x509));
    a_moment().await;
    assert_eq!(scene.sources().reads(), reads + 1);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_does_not_come_any_more_follows_the_pods_policy_and_holds_up_no_svid() {
    let (scene, kept, wiped) = (Scene::new(), directory(), directory());
    scene.sources().federate(&["partner.example", "other.example"]);
    let bundles = [
        ("bundle.countersign.dev/p", "partner.example"),
        ("bundle.countersign.dev/o", "other.example?optional"),
    ];
    let keep = [SVID[0], bundles[0], bundles[1]];
    let wipe = [SVID[0], bundles[0], bundles[1], ("countersign.dev/on-revoked", "wipe")];
    scene.publish("1", "a", &keep, Some(kept.path())).await.unwrap();
    scene.publish("2", "a", &wipe, Some(wiped.path())).await.unwrap();
    let (before, bundle) = (read(&kept, "k"), read(&kept, "p"));
    let there = |dir: &TempDir, name| dir.path().join(name).symlink_metadata().is_ok();
    assert!(there(&kept, "o") && there(&wiped, "p"));
    scene.sources().federate(&[]);
    for _ in 0..2 {
        scene.sources().push(&workload("a"), Some(identity("spiffe://t/ns/n/sa/a").x509));
        a_moment().await;
    }
    assert!(!there(&wiped, "p") && !there(&wiped, "o") && !there(&kept, "o"));
    assert_eq!(read(&kept, "p"), bundle);
    assert!(read(&kept, "k") != before && there(&wiped, "k"));
    scene.sources().federate(&["partner.example"]);
    scene.sources().push(&workload("a"), Some(identity("spiffe://t/ns/n/sa/a").x509));
    a_moment().await;
    assert!(there(&wiped, "p"));
    scene.end().await;
}
