//! SIGKILL of driver, agent or both at random moments, while volumes come, change and go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::node::{Node, SOON, Setup};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::store::SopsStore;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::slots::{SECRET, Slots};

/// Volumes at a time.
const SLOTS: usize = 30;
/// How often the secret changes.
const CHANGE: Duration = Duration::from_millis(200);

/// Kills to be made: few in the ordinary run, a thousand in CI.
pub(crate) fn kills() -> u32 {
    std::env::var("COUNTERSIGN_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(25)
}

fn seed() -> u64 {
    std::env::var("COUNTERSIGN_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| rand::rng().random())
}

#[derive(Debug, Default)]
struct Kills {
    driver: u32,
    agent: u32,
    both: u32,
}

pub(crate) async fn kills_at_random_moments() -> Result<()> {
    let (kills, seed) = (kills(), seed());
    say(&format!("{kills} kills, COUNTERSIGN_SEED={seed}"));
    let mut node = Node::start(Setup::default()).await?;
    let outcome = soak(&mut node, kills, seed).await;
    outcome.map_err(|error| anyhow::anyhow!("COUNTERSIGN_SEED={seed}: {error:#}\n{}", node.said()))
}

async fn soak(node: &mut Node, kills: u32, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    change(&node.store, 0)?;
    let baseline = baseline(node).await?;
    let slots = Slots::new(SLOTS);
    let readers = slots.start_readers(2);

    let mut work: JoinSet<Result<()>> = JoinSet::new();
    for index in 0..SLOTS {
        let random = StdRng::seed_from_u64(random.random());
        work.spawn(slots.live(index, std::sync::Arc::clone(&node.kubelet), random));
    }
    let mut changes = JoinSet::new();
    changes.spawn(keep_changing(node.store.clone()));

    let began = Instant::now();
    let mut made = Kills::default();
    for _ in 0..kills {
        sleep(Duration::from_millis(random.random_range(20..400))).await;
        kill(node, &mut random, &mut made).await?;
        ensure!(!slots.has_complaints(), "{}", slots.complaints());
        if let Some(ended) = work.try_join_next() {
            ended?.context("a slot ended early")?;
        }
    }
    // All is well again: everything is taken away.
    slots.finish();
    while let Some(ended) = work.join_next().await {
        ended??;
    }
    let reads = readers.into_iter().map(|reader| reader.join().unwrap_or_default()).sum::<u64>();
    let generations = stop(&mut changes).await;
    ensure!(!slots.has_complaints(), "{}", slots.complaints());
    node.is_clean().await?;
    let now = node.descriptors()?.map(|list| list.len());
    ensure!(
        now[0] <= baseline[0] + 2 && now[1] <= baseline[1] + 4,
        "descriptors: {baseline:?}, then {now:?}"
    );

    let tally = slots.tally();
    say(&format!(
        "{:.0} s: {made:?}; {} volumes published, {} republishes, {} unpublished; {reads} reads of whole volumes, \
         {generations} states written; 0 torn, 0 missing, 0 empty, 0 leaked mounts, directories or descriptors",
        began.elapsed().as_secs_f64(),
        tally.published,
        tally.republished,
        tally.unpublished,
    ));
    ensure!(reads > 0 && tally.published > 0, "the soak was idle");
    Ok(())
}

/// Descriptors of both processes when all was opened once and nothing is held.
async fn baseline(node: &Node) -> Result<[usize; 2]> {
    let mut volume =
        node.published(&Pod::new("payments", "first", "api"), Volume::new().secret("a", SECRET)).await?;
    volume.unpublish(SOON).await?;
    node.is_clean().await?;
    Ok(node.descriptors()?.map(|list| list.len()))
}

async fn kill(node: &mut Node, random: &mut StdRng, made: &mut Kills) -> Result<()> {
    let pause = Duration::from_millis(random.random_range(0..200));
    let (driver, agent) = match random.random_range(0..3) {
        0 => (true, false),
        1 => (false, true),
        _ => (true, true),
    };
    match (driver, agent) {
        (true, true) => made.both += 1,
        (true, false) => made.driver += 1,
        (false, _) => made.agent += 1,
    }
    if driver {
        node.kill_driver()?;
    }
    if agent {
        node.kill_agent()?;
    }
    sleep(pause).await;
    if agent {
        node.start_agent().await?;
    }
    if driver {
        node.start_driver().await?;
    }
    Ok(())
}

/// One state of the secret: the same number in every field, each with a tail of its own so that files differ.
fn change(store: &SopsStore, generation: u64) -> Result<()> {
    let path = SECRET.strip_prefix("sops:").context("a reference")?;
    let number = format!("{generation:08}");
    store.write(
        path,
        &json!({"a": format!("{number} a"), "b": format!("{number} {}", "b".repeat(3000)), "n": number}),
    )
}

async fn keep_changing(store: SopsStore) -> u64 {
    let mut generation = 0;
    loop {
        sleep(CHANGE).await;
        let (store, next) = (store.clone(), generation + 1);
        if let Ok(Ok(())) = tokio::task::spawn_blocking(move || change(&store, next)).await {
            generation = next;
            WRITTEN.store(generation, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

static WRITTEN: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

async fn stop(changes: &mut JoinSet<u64>) -> u64 {
    changes.shutdown().await;
    WRITTEN.load(std::sync::atomic::Ordering::Relaxed)
}

#[expect(clippy::print_stderr, reason = "a soak tells its seed and its counts")]
pub(crate) fn say(text: &str) {
    eprintln!("soak: {text}");
}
