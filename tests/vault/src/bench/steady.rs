//! 250 volumes whose secrets are looked at once a minute, and one whose secret changes.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep};

use countersign_tests::bench::report::{Quantity, Row};
use countersign_tests::bench::times::Times;
use countersign_tests::bench::usage::{Processor, millicores};
use countersign_tests::node::SOON;
use countersign_tests::reader::read_file;

use super::Effort;
use super::setting::{secret, start, volume};

const VOLUMES: usize = 250;
const ACCOUNTS: usize = 25;
const SECRETS: [&str; 3] = ["one", "two", "three"];
/// How often a secret is looked at again by default.
const REFRESH: Duration = Duration::from_secs(60);
/// How often the one that changes is.
const POLL: Duration = Duration::from_secs(1);

pub(super) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let world = start(false).await?;
    for name in SECRETS {
        secret(&world, name, "correct horse battery staple").await?;
    }
    let volumes = (0..VOLUMES).map(|number| {
        let account = format!("account-{}", number % ACCOUNTS);
        volume(&world, &format!("pod-{number}"), &account, &SECRETS, "60s")
    });
    let published = stream::iter(volumes).map(async |mut volume| {
        volume.publish(SOON).await?;
        Ok::<_, anyhow::Error>(volume)
    });
    let mut volumes: Vec<_> = published.buffered(8).try_collect().await?;

    let agent = world.node.agent.as_ref().context("the agent")?;
    let vault = world.vault.process()?;
    let (before, cpu, vault_cpu) = (world.vault.audit()?.len(), Processor::of(agent)?, Processor::of(vault)?);
    let began = Instant::now();
    sleep(effort.of(5 * REFRESH, REFRESH)).await;
    let window = began.elapsed();
    let cpu = millicores(Processor::of(agent)?.since(&cpu), window);
    let vault_cpu = millicores(Processor::of(vault)?.since(&vault_cpu), window);
    let audit = world.vault.audit()?;
    let requests =
        audit.get(before..).unwrap_or_default().iter().filter(|entry| entry.kind == "request").count();
    let an_hour = |count: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts are small and positive"
        )]
        Quantity::Count((count * 3600.0 / window.as_secs_f64()).round() as u64)
    };
    #[expect(clippy::cast_precision_loss, reason = "none of our counts has 53 bits")]
    let (requests, least) =
        (requests as f64, (ACCOUNTS * SECRETS.len()) as f64 * window.as_secs_f64() / REFRESH.as_secs_f64());
    let mut rows = vec![
        Row::new("requests an hour, 250 volumes", an_hour(requests))
            .floor(an_hour(least), "one read an identity, secret and minute")
            .remark(format!("25 identities, 3 secrets each, seen for {}", Quantity::Time(window))),
        Row::new("CPU of the agent meanwhile", Quantity::Millicores(cpu))
            .floor(Quantity::Millicores(vault_cpu), "Vault's"),
    ];

    let mut changing = volume(&world, "changing", "account-0", &["changing"], "1s");
    secret(&world, "changing", "generation 0").await?;
    changing.publish(SOON).await?;
    let mut times = Vec::new();
    for generation in 1..=effort.of(60, 15) {
        // Not in step with the agent: primes of milliseconds.
        sleep(Duration::from_millis(generation * 137 % 997)).await;
        let value = format!("generation {generation}");
        secret(&world, "changing", &value).await?;
        let began = Instant::now();
        while read_file(&changing.target(), "changing")? != value {
            anyhow::ensure!(began.elapsed() < SOON, "{value} has not arrived");
            sleep(Duration::from_millis(1)).await;
        }
        times.push(began.elapsed());
    }
    let times = Times::of(times)?;
    rows.extend([
        Row::new("change in Vault to new bytes, p50", Quantity::Time(times.median()))
            .floor(Quantity::Time(POLL / 2), "half the poll interval")
            .remark(format!("{} changes at refresh 1s (drawn ±10 %)", times.count())),
        Row::new("change in Vault to new bytes, p99", Quantity::Time(times.percentile(99)))
            .floor(Quantity::Time(POLL), "the poll interval"),
    ]);
    volumes.push(changing);
    for volume in &mut volumes {
        volume.unpublish(SOON).await?;
    }
    Ok(rows)
}
