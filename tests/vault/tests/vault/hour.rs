//! Vault is away for an hour, and a node full of pods waits for it. The hour passes for agent and issuer alone, two
//! seconds at a step, by libfaketime: pauses, ages, certificates and all. What is expected is reckoned by that clock, which
//! goes on between two steps as well: on a slow machine the hour is a longer one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case_within};
use countersign_tests::kubelet::PodVolume;
use countersign_tests::node::{NODE, SOON, Setup};
use countersign_tests::pods::Pod;
use countersign_tests::reader::read_file;
use countersign_tests::tokens::{AGENT_SERVICE_ACCOUNT, AUDIENCE};
use countersign_vault_tests::world::{Plan, World, in_world};
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::asking::{counted, one};
use crate::clock::{Hands, Moves, folder, program};

pub(crate) fn cases() -> Vec<Case> {
    let limit = Duration::from_secs(600);
    vec![case_within(
        limit,
        "hour::two_hundred_volumes_wait_for_vault",
        Needs::Root,
        two_hundred_volumes_wait,
    )]
}

const VOLUMES: usize = 200;
const IDENTITIES: u16 = 20;
const HOUR: u64 = 3600;
/// The longest between two reads of a secret, and the longest between two tries, in seconds: a minute and a tenth.
const INTERVAL: f64 = 66.0;
/// Less than the agent waits for a sign of life on a connection.
const STEP: u64 = 2;
/// What the agent gets to do what is due after a step, in real time.
const MOMENT: Duration = Duration::from_millis(30);

/// The node's time.
struct Time {
    hands: Hands,
    /// Seconds in steps.
    passed: u64,
    began: Instant,
}

impl Time {
    /// Seconds by the agent's clock.
    fn shown(&self) -> f64 {
        (Duration::from_secs(self.passed) + self.began.elapsed()).as_secs_f64()
    }

    /// Lets one step pass, and wakes the agent by asking it for something: its timers look at the clock then.
    async fn step(&mut self, world: &World) -> Result<()> {
        self.passed += STEP;
        self.hands.turn(&format!("+{}", self.passed))?;
        world.node.metrics().await?;
        tokio::time::sleep(MOMENT).await;
        world.node.metrics().await.map(drop)
    }
}

async fn failures(world: &World) -> Result<f64> {
    let all = counted(&world.node, "countersign_fetch_total", &["store=\"vault\""]).await?;
    let ok = counted(&world.node, "countersign_fetch_total", &["store=\"vault\"", "result=\"ok\""]).await?;
    Ok(all - ok)
}

/// Lines of the agent's log that have this in them.
fn lines(world: &World, with: &str) -> usize {
    let log = std::fs::read_to_string(world.node.layout.log("agent")).unwrap_or_default();
    log.lines().filter(|line| line.contains(with)).count()
}

fn generations(volumes: &[PodVolume]) -> Result<Vec<PathBuf>> {
    let shown = |volume: &PodVolume| std::fs::read_link(volume.target().join("..data"));
    volumes.iter().map(shown).collect::<Result<_, _>>().context("a link")
}

/// A role for each identity, which forgives that an hour has passed for them and not for Vault.
async fn roles(world: &World) -> Result<()> {
    let root = world.vault.root();
    let mut role = root.read("auth/jwt/role/payments_api").await?["data"].clone();
    for leeway in ["expiration_leeway", "not_before_leeway", "clock_skew_leeway"] {
        role[leeway] = json!(3 * HOUR);
    }
    for number in 0..IDENTITIES {
        role["bound_subject"] = json!(format!("spiffe://example.org/ns/payments/sa/account-{number}"));
        root.write(&format!("auth/jwt/role/payments_account-{number}"), &role).await?;
    }
    Ok(())
}

async fn published(world: &World) -> Result<Vec<PodVolume>> {
    let mut volumes: Vec<PodVolume> = (0..VOLUMES)
        .map(|number| {
            let account = format!("account-{}", number % usize::from(IDENTITIES));
            let asked = one("vault:kv/data/payments#password").refresh("60s");
            world.node.volume(&Pod::new("payments", &format!("pod-{number}"), &account), asked)
        })
        .collect();
    try_join_all(volumes.iter_mut().map(|volume| volume.publish(Duration::from_secs(120)))).await?;
    Ok(volumes)
}

async fn two_hundred_volumes_wait() -> Result<()> {
    let folder = folder()?;
    let hands = Hands::new(folder.path())?;
    let late = Some(program(&hands, Moves::Time)?);
    let node = Setup { agent_binary: late.clone(), issuer_binary: late, ..Setup::default() };
    let mut time = Time { hands, passed: 0, began: Instant::now() };
    in_world(Plan { node, ..Plan::default() }, async |world| {
        roles(world).await?;
        // The agent's own token outlives the hour, as kubelet sees to.
        let cluster = world.node.kubelet.cluster();
        let (namespace, account) = AGENT_SERVICE_ACCOUNT;
        let agent = Pod::new(namespace, "countersign-agent-x7x7x", account);
        let token = cluster.token(&agent, NODE, AUDIENCE, 4 * 3600)?;
        world.node.layout.write_identity_files(&cluster.jwks(), &token)?;

        let mut volumes = published(world).await?;
        let (shown, failed, said) = (generations(&volumes)?, failures(world).await?, lines(world, ""));
        let before = time.shown();
        world.vault.kill()?;
        let after = time.shown();
        while time.passed < HOUR {
            time.step(world).await?;
        }
        ensure!(generations(&volumes)? == shown, "no file was written");
        let least = time.shown() - after;
        let stale = world.node.metrics().await?.sum("countersign_secret_stale_seconds", &["store=\"vault\""]);
        let (stale, outage) = (stale.context("how stale it is")?, time.shown() - before);
        ensure!(stale >= least, "{stale} s stale after {least} s");
        ensure!(
            stale <= outage + INTERVAL,
            "{stale} s stale after {outage} s, and no longer than an interval more"
        );
        // One secret for each identity, asked for once a minute when the pauses have grown.
        let failed = (failures(world).await? - failed) / f64::from(IDENTITIES);
        ensure!(failed >= outage / (3.0 * INTERVAL), "{failed} reads of each failed in {outage} s");
        ensure!(failed <= outage / 50.0 + 10.0, "{failed} reads of each failed in {outage} s");
        // Each is a line and an event.
        let told = lines(world, "could not be brought up to date");
        ensure!(told == VOLUMES, "{told} lines that tell of {VOLUMES} volumes");
        let said = lines(world, "") - said;
        ensure!(said <= VOLUMES + 100, "{said} lines for {VOLUMES} volumes");

        world.vault.resume().await?;
        let data = json!({"data": {"password": "second"}});
        world.vault.root().write("kv/data/payments", &data).await?;
        recovers(world, &mut time, &volumes).await?;
        let told = ["could not be brought up to date", "is up to date again"].map(|with| lines(world, with));
        ensure!(told == [VOLUMES; 2], "{told:?} lines of trouble and of its end");
        try_join_all(volumes.iter_mut().map(|volume| volume.unpublish(SOON))).await.map(drop)
    })
    .await
}

/// All come back within two of the longest pauses and what the address itself is left alone for, and not all at once.
async fn recovers(world: &World, time: &mut Time, volumes: &[PodVolume]) -> Result<()> {
    let audited = world.vault.audited()?;
    let reads = || -> Result<usize> {
        Ok(world.vault.audit_since(audited)?.iter().filter(|entry| entry.reads("kv/data/payments")).count())
    };
    let (back, mut seen, mut most) = (time.shown(), 0, 0);
    let has = |volume: &PodVolume| read_file(&volume.target(), "a").is_ok_and(|now| now == "second");
    while !volumes.iter().all(has) {
        time.step(world).await?;
        let now = reads()?;
        (most, seen) = (most.max(now - seen), now);
        ensure!(time.shown() < back + 3.0 * INTERVAL, "not all are back after {} s", time.shown() - back);
    }
    let identities = usize::from(IDENTITIES);
    ensure!(most <= identities / 2, "{most} of {identities} reads within a step of {STEP} s");
    ensure!(seen <= 4 * identities, "{seen} reads of {identities} secrets");
    Ok(())
}
