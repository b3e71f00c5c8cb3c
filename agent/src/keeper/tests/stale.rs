//! What volumes do when a store reports that a secret has changed.

use super::*;
use crate::request::Reference;
use crate::spiffe::SpiffeId;

const A: &[(&str, &str)] = &[("secret.countersign.dev/a", "s:a"), ("countersign.dev/refresh", "1h")];
const B: &[(&str, &str)] = &[("secret.countersign.dev/b", "s:b"), ("countersign.dev/refresh", "1h")];

fn id(sa: &str) -> SpiffeId {
    format!("spiffe://t/ns/n/sa/{sa}").parse().unwrap()
}

fn source(text: &str) -> crate::request::Source {
    Reference::parse(text, &StoreNames::from_iter(["s"])).unwrap().source
}

/// Long enough for a turn, and too short for anything to be due.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn exactly_those_that_read_it_as_this_identity_read_it_again() {
    let scene = Scene::new();
    scene.sources().put("b", "one");
    let dirs: Vec<_> = (0..4).map(|_| directory()).collect();
    for (volume, sa, keys, dir) in
        [("1", "x", A, &dirs[0]), ("2", "x", A, &dirs[1]), ("3", "x", B, &dirs[2]), ("4", "y", A, &dirs[3])]
    {
        scene.publish(volume, sa, keys, Some(dir.path())).await.unwrap();
    }
    assert_eq!(scene.sources().reads(), 3, "two volumes share a read");
    scene.sources().put("a", "two");
    scene.sources().put("b", "two");
    scene.sources().tell(&id("x"), &source("s:a"));
    a_moment().await;
    let now = [read(&dirs[0], "a"), read(&dirs[1], "a"), read(&dirs[2], "b"), read(&dirs[3], "a")];
    assert_eq!(now, ["two", "two", "one", "one"]);
    assert_eq!(scene.sources().reads(), 4, "they share this one as well");
    scene.sources().tell(&id("x"), &source("s:nobody-reads-this"));
    scene.sources().tell(&id("nobody"), &source("s:a"));
    a_moment().await;
    assert_eq!(scene.sources().reads(), 4);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_during_a_turn_is_not_lost() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().delay(Duration::from_secs(5));
    let change = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.sources().tell(&id("x"), &source("s:a"));
    };
    let (published, ()) = tokio::join!(scene.publish("v", "x", A, Some(dir.path())), change);
    published.unwrap();
    scene.sources().put("a", "two");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!((scene.sources().reads(), read(&dir, "a")), (2, "two".to_owned()));
    scene.end().await;
}

/// Events are no way around the pause that a store in trouble is left.
#[tokio::test(start_paused = true)]
async fn a_store_in_trouble_is_not_asked_for_every_change() {
    let (scene, dir) = (Scene::new(), directory());
    scene.publish("v", "x", A, Some(dir.path())).await.unwrap();
    scene.sources().fail(down());
    for _ in 0..20 {
        scene.sources().tell(&id("x"), &source("s:a"));
        a_moment().await;
    }
    assert_eq!(scene.sources().reads(), 2, "the one that found out");
    assert_eq!(read(&dir, "a"), "one");
    scene.end().await;
}
