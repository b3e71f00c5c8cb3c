use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::*;
use crate::identity::Identity;
use crate::secret::Node;
use crate::secret::Secret;
use crate::store::Fresh;
use crate::testing::{FakeSources, caller, identity};

fn source(path: &str) -> Source {
    Source { store: "s".into(), path: path.into(), version: None, options: BTreeMap::new() }
}

fn text(look: &Look) -> &[u8] {
    match look.document.as_deref() {
        Some(Node::Text(secret)) => secret.expose(),
        _ => b"",
    }
}

const AGE: Duration = Duration::from_secs(60);

async fn ask(cache: &Cache, sources: &FakeSources, entry: &Arc<Entry>, identity: &Identity) -> Look {
    cache.look(sources, entry, caller(identity), AGE).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_read_for_all_who_ask_at_once() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    sources.delay(Duration::from_millis(50));
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let entries: Vec<_> = (0..250).map(|_| cache.entry(&me.spiffe_id, &source("a"))).collect();
    let looks = join_all(entries.iter().map(|entry| ask(&cache, &sources, entry, &me))).await;
    assert!(looks.iter().all(|look| text(look) == b"1"));
    assert_eq!((sources.reads(), cache.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn identities_never_share_an_answer() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    let cache = Cache::new(Clock::system());
    let (one, two) = (identity("spiffe://t/ns/n/sa/one"), identity("spiffe://t/ns/n/sa/two"));
    let (e1, e2) = (cache.entry(&one.spiffe_id, &source("a")), cache.entry(&two.spiffe_id, &source("a")));
    ask(&cache, &sources, &e1, &one).await;
    ask(&cache, &sources, &e2, &two).await;
    assert_eq!(sources.reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_good_for_its_time_and_no_longer() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let entry = cache.entry(&me.spiffe_id, &source("a"));
    let first = ask(&cache, &sources, &entry, &me).await;
    let wait = first.due - Instant::now();
    assert!(wait >= AGE.mul_f64(0.9) && wait <= AGE.mul_f64(1.1), "{wait:?}");
    sources.put("a", "2");
    tokio::time::advance(Duration::from_secs(53)).await;
    assert_eq!(text(&ask(&cache, &sources, &entry, &me).await), b"1");
    tokio::time::advance(Duration::from_secs(14)).await;
    assert_eq!(text(&ask(&cache, &sources, &entry, &me).await), b"2");
    assert_eq!(sources.reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn trouble_keeps_the_last_good_answer_and_backs_off() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let entry = cache.entry(&me.spiffe_id, &source("a"));
    ask(&cache, &sources, &entry, &me).await;
    sources.fail(Error::StoreUnavailable { store: "s".into(), problem: "down".into(), retry_after: None });
    tokio::time::advance(AGE * 2).await;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let look = ask(&cache, &sources, &entry, &me).await;
        assert_eq!(text(&look), b"1");
        assert_eq!(look.trouble.as_ref().map(Error::code), Some(tonic::Code::Unavailable));
        // Asked again before its time, the store is left alone.
        let reads = sources.reads();
        ask(&cache, &sources, &entry, &me).await;
        assert_eq!(sources.reads(), reads);
        pauses.push((look.due - Instant::now()).as_secs_f64());
        tokio::time::advance(look.due - Instant::now()).await;
    }
    for (pause, doubled) in pauses.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]) {
        assert!((doubled * 0.89..=doubled * 1.11).contains(pause), "{pauses:?}");
    }
    sources.heal();
    let look = ask(&cache, &sources, &entry, &me).await;
    assert!(look.trouble.is_none());
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed() {
    let sources = FakeSources::default();
    let asked = Some(Duration::from_secs(300));
    sources.fail(Error::StoreUnavailable { store: "s".into(), problem: "busy".into(), retry_after: asked });
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let entry = cache.entry(&me.spiffe_id, &source("a"));
    let look = ask(&cache, &sources, &entry, &me).await;
    assert!(look.document.is_none());
    assert!(look.due - Instant::now() >= Duration::from_secs(270));
}

/// A publish that is refused takes its volume along, and kubelet tries again after half a second.
#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed_by_who_comes_anew() {
    let sources = FakeSources::default();
    let asked = Some(Duration::from_secs(300));
    sources.fail(Error::StoreUnavailable { store: "s".into(), problem: "busy".into(), retry_after: asked });
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    for _ in 0..5 {
        let entry = cache.entry(&me.spiffe_id, &source("a"));
        assert!(ask(&cache, &sources, &entry, &me).await.trouble.is_some());
        tokio::time::advance(Duration::from_millis(500)).await;
    }
    assert_eq!(sources.reads(), 1);
    // One with an answer goes with who held it, whatever its store asks for.
    sources.heal();
    sources.put("b", "1");
    let held = cache.entry(&me.spiffe_id, &source("b"));
    ask(&cache, &sources, &held, &me).await;
    sources.fail(Error::StoreUnavailable { store: "s".into(), problem: "busy".into(), retry_after: asked });
    tokio::time::advance(AGE * 2).await;
    ask(&cache, &sources, &held, &me).await;
    let weak = Arc::downgrade(&held);
    drop(held);
    assert!(weak.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_given_up_and_slows_no_other() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    sources.hang("slow");
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let slow: Vec<_> = (0..40)
        .map(|n| Source { store: "slow".into(), ..source(&format!("p{n}")) })
        .map(|source| cache.entry(&me.spiffe_id, &source))
        .collect();
    let quick = cache.entry(&me.spiffe_id, &source("a"));
    let began = Instant::now();
    let hanging = join_all(slow.iter().map(|entry| ask(&cache, &sources, entry, &me)));
    let answered = async {
        let look = ask(&cache, &sources, &quick, &me).await;
        (look, Instant::now() - began)
    };
    let (looks, (look, took)) = tokio::join!(hanging, answered);
    assert_eq!((text(&look), took), (&b"1"[..], Duration::ZERO));
    assert_eq!(Instant::now() - began, READ_LIMIT);
    let message = looks[0].trouble.as_ref().unwrap().to_string();
    assert_eq!(message, "store slow: no answer within 20 s; is it reachable from this node?");
}

#[tokio::test(start_paused = true)]
async fn an_entry_lives_as_long_as_somebody_holds_it() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let entry = cache.entry(&me.spiffe_id, &source("a"));
    ask(&cache, &sources, &entry, &me).await;
    drop(entry);
    assert!(cache.is_empty());
    for n in 0..1000 {
        drop(cache.entry(&me.spiffe_id, &source(&n.to_string())));
    }
    assert!(cache.entries.lock().unwrap().len() < 10, "dead entries are swept");
}

#[tokio::test(start_paused = true)]
async fn an_equal_version_keeps_the_document_that_is_held() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let entry = cache.entry(&me.spiffe_id, &source("a"));
    let first = ask(&cache, &sources, &entry, &me).await.document.unwrap();
    tokio::time::advance(AGE * 2).await;
    let second = ask(&cache, &sources, &entry, &me).await.document.unwrap();
    assert_eq!(sources.reads(), 2);
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(*first, Node::Text(Secret::from("1".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn what_volumes_must_not_share_is_read_for_each() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    sources.set_apart("a");
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let (one, two) = (VolumeId::from("one"), VolumeId::from("two"));
    let shared = cache.entry(&me.spiffe_id, &source("a"));
    let (own, look) = cache.look_for(&one, &sources, shared, caller(&me), AGE).await;
    assert_eq!((text(&look), sources.reads()), (&b"1"[..], 1));
    let (own, _) = cache.look_for(&one, &sources, own, caller(&me), AGE).await;
    assert_eq!(sources.reads(), 1, "its own entry is known from then on");
    let shared = cache.entry(&me.spiffe_id, &source("a"));
    let (other, _) = cache.look_for(&two, &sources, shared, caller(&me), AGE).await;
    assert_eq!((sources.reads(), cache.len()), (2, 2));
    assert!(!Arc::ptr_eq(&own, &other));
}

#[tokio::test(start_paused = true)]
async fn the_store_may_know_better_how_long_an_answer_is_good_for() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let hour = Duration::from_secs(3600);
    for (fresh, from, to) in [
        (Fresh::AsAsked, 54, 66),
        (Fresh::AtMost(hour), 54, 66),
        (Fresh::AtMost(Duration::from_secs(7)), 7, 7),
        (Fresh::Exactly(hour), 3600, 3600),
    ] {
        sources.good_for(fresh);
        let entry = cache.entry(&me.spiffe_id, &source("a"));
        let due = ask(&cache, &sources, &entry, &me).await.due - Instant::now();
        assert!((Duration::from_secs(from)..=Duration::from_secs(to)).contains(&due), "{fresh:?}: {due:?}");
    }
}
