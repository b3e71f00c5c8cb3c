use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::*;
use crate::secret::Secret;
use crate::testing::{FakeSources, identity};

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

#[tokio::test(start_paused = true)]
async fn one_read_for_all_who_ask_at_once() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    sources.delay(Duration::from_millis(50));
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let entries: Vec<_> = (0..250).map(|_| cache.entry(&me.spiffe_id, &source("a"))).collect();
    let looks = join_all(entries.iter().map(|entry| cache.look(&sources, entry, &me, AGE))).await;
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
    cache.look(&sources, &e1, &one, AGE).await;
    cache.look(&sources, &e2, &two, AGE).await;
    assert_eq!(sources.reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_good_for_its_time_and_no_longer() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let entry = cache.entry(&me.spiffe_id, &source("a"));
    let first = cache.look(&sources, &entry, &me, AGE).await;
    let wait = first.due - Instant::now();
    assert!(wait >= AGE.mul_f64(0.9) && wait <= AGE.mul_f64(1.1), "{wait:?}");
    sources.put("a", "2");
    tokio::time::advance(Duration::from_secs(53)).await;
    assert_eq!(text(&cache.look(&sources, &entry, &me, AGE).await), b"1");
    tokio::time::advance(Duration::from_secs(14)).await;
    assert_eq!(text(&cache.look(&sources, &entry, &me, AGE).await), b"2");
    assert_eq!(sources.reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn trouble_keeps_the_last_good_answer_and_backs_off() {
    let sources = FakeSources::default();
    sources.put("a", "1");
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let entry = cache.entry(&me.spiffe_id, &source("a"));
    cache.look(&sources, &entry, &me, AGE).await;
    sources.fail(Error::StoreUnavailable { store: "s".into(), problem: "down".into(), retry_after: None });
    tokio::time::advance(AGE * 2).await;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let look = cache.look(&sources, &entry, &me, AGE).await;
        assert_eq!(text(&look), b"1");
        assert_eq!(look.trouble.as_ref().map(Error::code), Some(tonic::Code::Unavailable));
        // Asked again before its time, the store is left alone.
        let reads = sources.reads();
        cache.look(&sources, &entry, &me, AGE).await;
        assert_eq!(sources.reads(), reads);
        pauses.push((look.due - Instant::now()).as_secs_f64());
        tokio::time::advance(look.due - Instant::now()).await;
    }
    for (pause, doubled) in pauses.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]) {
        assert!((doubled * 0.89..=doubled * 1.11).contains(pause), "{pauses:?}");
    }
    sources.heal();
    let look = cache.look(&sources, &entry, &me, AGE).await;
    assert!(look.trouble.is_none());
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed() {
    let sources = FakeSources::default();
    let asked = Some(Duration::from_secs(300));
    sources.fail(Error::StoreUnavailable { store: "s".into(), problem: "busy".into(), retry_after: asked });
    let (cache, me) = (Cache::new(Clock::system()), identity("spiffe://t/ns/n/sa/a"));
    let entry = cache.entry(&me.spiffe_id, &source("a"));
    let look = cache.look(&sources, &entry, &me, AGE).await;
    assert!(look.document.is_none());
    assert!(look.due - Instant::now() >= Duration::from_secs(270));
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
    let hanging = join_all(slow.iter().map(|entry| cache.look(&sources, entry, &me, AGE)));
    let answered = async {
        let look = cache.look(&sources, &quick, &me, AGE).await;
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
    cache.look(&sources, &entry, &me, AGE).await;
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
    let first = cache.look(&sources, &entry, &me, AGE).await.document.unwrap();
    tokio::time::advance(AGE * 2).await;
    let second = cache.look(&sources, &entry, &me, AGE).await.document.unwrap();
    assert_eq!(sources.reads(), 2);
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(*first, Node::Text(Secret::from("1".to_owned())));
}
