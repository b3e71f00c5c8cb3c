//! What a publish takes beyond the answers of store and identity.
//!
//! The store's answer is in the node cache: another pod of the same account holds it. The identity's answer can't
//! be: every pod has its own. The agent's own clock around each request for an SVID is read before and after each
//! publish, and taken off. No two publishes overlap, so what is taken off belongs to the publish it is taken off.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Effort;
use super::bare;
use super::calls::{Clocks, end, prepared};
use super::load::{Load, NEVER};
use super::report::{Quantity, Row};
use super::times::Times;
use super::usage::Processor;
use crate::reader;

/// Publishes before the first that counts.
const WARM_UP: usize = 20;

pub(super) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let mut load = Load::start(Some(NEVER)).await?;
    // Holds the secrets in the cache.
    load.grow_to(1).await?;
    let files = reader::read(&load.volumes.first().context("a volume")?.target())?;
    let floor_target = load.node.layout.scratch.directory("bare", 0o755)?;
    let calls = load.calls()?;

    let (mut whole, mut identity, mut overhead) = (Vec::new(), Vec::new(), Vec::new());
    let mut agent = Vec::new();
    let (mut waiting, mut turns, mut used) = (Vec::new(), 0, Duration::ZERO);
    let (mut floor, mut probe) = (Vec::new(), Vec::new());
    let (mut before, reads_before) = (Clocks::of(&load.node).await?, reads(&load).await?);
    for round in 0..WARM_UP + effort.of(1000, 200) {
        let bare = bare::mount(&floor_target, &files)?;
        let probed = calls.probe().await?;
        // Of the same account as the first.
        let mut volume = load.pod(1);
        let request = prepared(&load.node, &volume)?;
        let processors_before = processors(&load)?;
        let took = calls.publish(request).await.context("publish")?;
        let processors_after = processors(&load)?;
        let after = Clocks::of(&load.node).await?;
        let clocks = after.since(&before);
        before = after;
        if round == 0 {
            ensure!(reader::read(&volume.target())?.len() == files.len(), "the volume has all its files");
        }
        end(&mut volume).await?;
        if round >= WARM_UP {
            whole.push(took);
            identity.push(clocks.identity);
            overhead.push(took.saturating_sub(clocks.identity));
            agent.push(clocks.publish.saturating_sub(clocks.identity));
            let mut waited = Duration::ZERO;
            for (now, earlier) in processors_after.iter().zip(&processors_before) {
                let (wait, given) = now.waits_since(earlier);
                waited += wait;
                turns += given;
                used += now.since(earlier);
            }
            waiting.push(waited);
            floor.push(bare);
            probe.push(probed);
        }
    }
    fs::remove_dir(floor_target)?;
    ensure!(reads(&load).await? == reads_before, "a secret was read that was to be in the cache");
    load.end().await?;

    let of = |samples| Times::of(samples);
    let (whole, identity, overhead) = (of(whole)?, of(identity)?, of(overhead)?);
    let (agent, floor, probe) = (of(agent)?, of(floor)?, of(probe)?);
    let waiting = of(waiting)?;
    let mut rows = Vec::new();
    for (percent, target) in [(50, Duration::from_millis(1)), (99, Duration::from_millis(3))] {
        let at = |times: &Times| Quantity::Time(times.percentile(percent));
        let parts = format!(
            "{} of it in the agent; in all {} with {} for the identity; a Probe takes {}; {} publishes",
            at(&agent),
            at(&whole),
            at(&identity),
            at(&probe),
            whole.count()
        );
        let row =
            Row::new(format!("publish overhead, p{percent}"), at(&overhead)).target(Quantity::Time(target));
        rows.push(row.floor(at(&floor), "bare mount").remark(parts));
    }
    let at = |percent| Quantity::Time(waiting.percentile(percent));
    let publishes = u32::try_from(waiting.count()).unwrap_or(u32::MAX);
    rows.push(
        Row::new("publish, ready and without a processor, p99", at(99)).floor(at(50), "its median").remark(
            format!(
                "driver and agent, the identity's part included; they had {} turns a publish and used {}",
                turns / u64::from(publishes).max(1),
                Quantity::Time(used / publishes.max(1))
            ),
        ),
    );
    Ok(rows)
}

fn processors(load: &Load) -> Result<[Processor; 2]> {
    let [driver, agent] = load.processes()?.map(Processor::of);
    Ok([driver?, agent?])
}

async fn reads(load: &Load) -> Result<u64> {
    load.counter("countersign_fetch_total").await
}
