//! A node starts: 250 volumes of 25 service accounts at once.

use std::time::Duration;

use anyhow::{Context, Result};
use countersign_proto::csi::NodePublishVolumeRequest;
use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::bare;
use super::calls::{Calls, end, prepared};
use super::load::{Load, NEVER, PODS_OF_AN_ACCOUNT, REFERENCES};
use super::report::{Quantity, Row};
use super::times::Times;
use crate::node::SOON;
use crate::reader;

const VOLUMES: u32 = 250;
/// Pause before a call is made again that failed in a way that can heal.
const AGAIN: Duration = Duration::from_millis(100);

pub(super) async fn measure() -> Result<Vec<Row>> {
    let load = Load::start(Some(NEVER)).await?;
    let mut volumes: Vec<_> = (0..VOLUMES as usize).map(|index| load.pod(index)).collect();
    let requests = volumes.iter().map(|volume| prepared(&load.node, volume)).collect::<Result<Vec<_>>>()?;
    let calls = load.calls()?;

    let began = Instant::now();
    let published = try_join_all(requests.into_iter().map(|request| publish(&calls, request))).await?;
    let took = began.elapsed();

    let reads = load.counter("countersign_fetch_total").await?;
    let svids = load.counter("countersign_identity_total").await?;
    let files = reader::read(&volumes.first().context("a volume")?.target())?;
    for volume in &mut volumes {
        end(volume).await?;
    }
    let target = load.node.layout.scratch.directory("bare", 0o755)?;
    let floor = (0..VOLUMES).map(|_| bare::mount(&target, &files)).collect::<Result<Vec<_>>>()?;
    load.end().await?;

    let again: u32 = published.iter().map(|(_, again)| again).sum();
    let times = Times::of(published.into_iter().map(|(took, _)| took).collect())?;
    let accounts = u64::from(VOLUMES.div_ceil(PODS_OF_AN_ACCOUNT));
    let rate = |took: Duration| Quantity::PerSecond(f64::from(VOLUMES) / took.as_secs_f64());
    let bare_time = Quantity::Time(floor.iter().sum());
    Ok(vec![
        Row::new("storm of 250, rate", rate(took))
            .floor(rate(floor.iter().sum()), "bare mounts, one by one")
            .remark(format!("all in {}, {again} calls made again", Quantity::Time(took))),
        Row::new("storm of 250, p50", Quantity::Time(times.median())).floor(bare_time, "all bare mounts"),
        Row::new("storm of 250, p99", Quantity::Time(times.percentile(99)))
            .floor(bare_time, "all bare mounts"),
        Row::new("storm of 250, store calls", Quantity::Count(reads))
            .target(Quantity::Count(accounts * REFERENCES))
            .floor(Quantity::Count(accounts * REFERENCES), "one per identity and reference"),
        Row::new("storm of 250, SVIDs issued", Quantity::Count(svids))
            .floor(Quantity::Count(VOLUMES.into()), "one per pod: a key is never shared"),
    ])
}

/// Publishes with some patience. Answers how long it took in all, and how many calls had to be made again.
async fn publish(calls: &Calls, request: NodePublishVolumeRequest) -> Result<(Duration, u32), Status> {
    let began = Instant::now();
    let mut again = 0;
    loop {
        match calls.publish(request.clone()).await {
            Ok(_) => return Ok((began.elapsed(), again)),
            Err(status) if began.elapsed() > SOON => return Err(status),
            Err(_) => again += 1,
        }
        sleep(AGAIN).await;
    }
}
