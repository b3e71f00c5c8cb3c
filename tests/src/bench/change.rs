//! From a change at the store to the new bytes in the pod's file.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Effort;
use super::load::{Load, NEVER};
use super::report::{Quantity, Row};
use super::times::Times;
use crate::node::SOON;
use crate::pods::{Pod, Volume};
use crate::reader;
use crate::scratch::replace_file;

/// How often the pod has its secret looked at.
const POLL: Duration = Duration::from_secs(1);
/// How often the file is read.
const LOOK: Duration = Duration::from_millis(1);

pub(super) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let mut load = Load::start(Some(NEVER)).await?;
    load.node.store.write("payments/changing", &json!({"value": "generation 0"}))?;
    let asked = Volume::new().secret("value", "sops:payments/changing#value").refresh("1s");
    let volume = load.node.published(&Pod::new("payments", "reader", "reader"), asked).await?;
    let target = volume.target();
    load.volumes.push(volume);

    let mut times = Vec::new();
    for generation in 1..=effort.of(60, 20) {
        // Not in step with the agent, as no change is.
        let pause = rand::rng().random_range(Duration::ZERO..POLL);
        sleep(pause).await;
        let value = format!("generation {generation}");
        let encrypted = load.node.store.encrypt(&json!({"value": value}))?;
        let file = load.node.store.file("payments/changing");
        let began = Instant::now();
        replace_file(&file, &encrypted, 0o644)?;
        while reader::read_file(&target, "value").context("the file is never missing")? != value {
            ensure!(began.elapsed() < SOON, "{value} has not arrived within {SOON:?}");
            sleep(LOOK).await;
        }
        times.push(began.elapsed());
    }
    load.end().await?;

    let times = Times::of(times)?;
    let remark = format!("{} changes at refresh 1s (drawn ±10 %)", times.count());
    Ok(vec![
        Row::new("change to new bytes, p50", Quantity::Time(times.median()))
            .floor(Quantity::Time(POLL / 2), "half the poll interval")
            .remark(remark),
        Row::new("change to new bytes, p99", Quantity::Time(times.percentile(99)))
            .floor(Quantity::Time(POLL), "the poll interval"),
    ])
}
