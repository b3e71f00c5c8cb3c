//! A store that is shown another SVID of the pod than its files are made of.

use super::pushes::{a_moment, workload};
use super::*;
use crate::testing::identity;

const ASKED: &[(&str, &str)] = &[
    ("svid.countersign.dev/x509", "c,k,b"),
    ("secret.countersign.dev/a", "s:a"),
    ("secret.countersign.dev/x", "for-external:a"),
];

fn external(sa: &str) -> Workload {
    workload(sa).hinted(&"external".into())
}

fn there(dir: &TempDir, name: &str) -> bool {
    dir.path().join(name).symlink_metadata().is_ok()
}

#[tokio::test(start_paused = true)]
async fn each_store_is_asked_by_the_svid_it_wants() {
    let (scene, dir, other) = (Scene::new(), directory(), directory());
    scene.publish("1", "a", ASKED, Some(dir.path())).await.unwrap();
    let mine = ["spiffe://t/external for-external:a", "spiffe://t/ns/n/sa/a s:a"];
    assert_eq!(scene.sources().readers(), mine);
    assert_eq!((read(&dir, "a"), read(&dir, "x")), ("one".into(), "one".into()));
    // Whoever is the same to the store shares its answer, and whoever is somebody else to the other does not.
    scene.publish("2", "b", ASKED, Some(other.path())).await.unwrap();
    assert_eq!(scene.sources().readers(), ["spiffe://t/ns/n/sa/b s:a"]);
    // A renewal of it is no change of a file, and no reason to ask.
    let key = read(&dir, "k");
    scene.sources().push(&external("a"), Some(identity("spiffe://t/external").x509));
    a_moment().await;
    assert_eq!((read(&dir, "k"), scene.sources().readers().len()), (key, 0));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_the_same_hint_has_one_svid() {
    let (scene, dir) = (Scene::new(), directory());
    let asked = [ASKED[0], ASKED[2]];
    let mut publish = publish("1", "a", &asked, Some(dir.path()));
    publish.workload = external("a");
    scene.handle.publish(publish).await.unwrap();
    assert_eq!((scene.sources().signed(), scene.sources().readers().len()), (1, 1));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_read_by_an_svid_that_is_withdrawn_follows_the_pods_policy() {
    let (scene, kept, wiped) = (Scene::new(), directory(), directory());
    let mut wipe = ASKED.to_vec();
    wipe.push(("countersign.dev/on-revoked", "wipe"));
    scene.publish("1", "a", ASKED, Some(kept.path())).await.unwrap();
    scene.publish("2", "a", &wipe, Some(wiped.path())).await.unwrap();
    scene.sources().readers();
    scene.sources().lack("external", true);
    scene.sources().push(&external("a"), None);
    a_moment().await;
    assert!(there(&kept, "x") && !there(&wiped, "x"));
    assert!(["a", "c", "k", "b"].iter().all(|name| there(&kept, name) && there(&wiped, name)));
    // Its store is not asked any more, and the others are.
    tokio::time::sleep(MINUTE * 10).await;
    let readers = scene.sources().readers();
    assert!(
        readers.len() > 5 && readers.iter().all(|reader| reader == "spiffe://t/ns/n/sa/a s:a"),
        "{readers:?}"
    );
    scene.sources().lack("external", false);
    scene.sources().push(&external("a"), Some(identity("spiffe://t/external").x509));
    a_moment().await;
    assert!(there(&wiped, "x"));
    scene.end().await;
}

/// What keeps a secret's lease alive is with the cache's entry, and goes with it.
#[tokio::test(start_paused = true)]
async fn what_was_read_by_an_svid_that_is_withdrawn_is_let_go_with_the_files_that_showed_it() {
    for (policy, left) in [("keep", 2), ("wipe", 1)] {
        let (scene, dir) = (Scene::new(), directory());
        scene.sources().set_apart("a");
        let mut asked = ASKED.to_vec();
        asked.push(("countersign.dev/on-revoked", policy));
        scene.publish("1", "a", &asked, Some(dir.path())).await.unwrap();
        assert_eq!((scene.world.cache.len(), read(&dir, "x").as_str()), (2, "one"));
        scene.sources().lack("external", true);
        scene.sources().push(&external("a"), None);
        a_moment().await;
        assert_eq!((scene.world.cache.len(), there(&dir, "x")), (left, policy == "keep"), "{policy}");
        scene.sources().lack("external", false);
        scene.sources().push(&external("a"), Some(identity("spiffe://t/external").x509));
        a_moment().await;
        assert_eq!((scene.world.cache.len(), read(&dir, "x").as_str()), (2, "one"), "{policy}");
        scene.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_the_svid_does_not_start() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().lack("external", true);
    let error = scene.publish("1", "a", ASKED, Some(dir.path())).await.unwrap_err().to_string();
    assert!(
        error.contains("secret.countersign.dev/x") && error.contains("no entry with external"),
        "{error}"
    );
    assert!(!there(&dir, "a"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn changes_of_two_svids_during_a_turn_are_both_heard() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().delay(Duration::from_secs(5));
    let push = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.sources().push(&workload("a"), Some(identity("spiffe://t/ns/n/sa/a").x509));
        scene.sources().push(&external("a"), Some(identity("spiffe://t/external").x509));
    };
    let (published, ()) = tokio::join!(scene.publish("v", "a", ASKED, Some(dir.path())), push);
    published.unwrap();
    a_moment().await;
    assert_eq!(scene.sources().signed(), 4);
    scene.end().await;
}
