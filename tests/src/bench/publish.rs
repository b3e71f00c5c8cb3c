//! What a publish costs, alone and in a storm.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_proto::csi::NodePublishVolumeRequest;
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::time::Instant;

use super::figures::{Table, Time, Times};
use super::floor;
use crate::http::Metrics;
use crate::kubelet::{PodVolume, csi_node};
use crate::node::{Node, SOON, Setup};
use crate::pods::{Pod, Volume};
use crate::reader::read;

/// Volumes published one after the other.
const TRIES: usize = 300;
/// Volumes of the storm, and accounts they belong to.
const STORM: usize = 250;
const ACCOUNTS: usize = 25;

/// What every pod of the benchmarks asks for.
pub(super) fn asked() -> Volume {
    Volume::new()
        .secret("password", "sops:payments/db#password")
        .secret("api.json", "sops:payments/api")
        .template(
            "app.env",
            "DATABASE_URL=postgres://app:{{ secret(\"sops:payments/db\").password }}@db/app\n",
        )
}

/// A node with the secrets for it.
pub(super) async fn node() -> Result<Node> {
    let node = Node::start(Setup::default()).await?;
    change(&node, "first")?;
    node.store.write("payments/api", &json!({"key": "k".repeat(64), "url": "https://api.example.com"}))?;
    Ok(node)
}

/// Writes another password.
pub(super) fn change(node: &Node, password: &str) -> Result<()> {
    node.store.write("payments/db", &json!({"username": "app", "password": password}))
}

/// One `NodePublishVolume` over a connection that is open already, as kubelet's own work is not ours.
pub(super) async fn publish_call(socket: &Path, request: NodePublishVolumeRequest) -> Result<Duration> {
    let mut client = csi_node(socket).await?;
    let began = Instant::now();
    client.node_publish_volume(request).await?;
    Ok(began.elapsed())
}

pub(super) fn socket(node: &Node) -> Result<PathBuf> {
    Ok(node.kubelet.plugin().context("a driver")?.endpoint)
}

/// What the agent itself says it waited for others, in seconds: the issuer and the store.
fn waited(metrics: &Metrics) -> f64 {
    ["countersign_identity_seconds_sum", "countersign_fetch_seconds_sum"]
        .iter()
        .filter_map(|name| metrics.sum(name, &[]))
        .sum()
}

/// One volume after the other.
pub(super) async fn overhead(table: &mut Table) -> Result<()> {
    let node = node().await?;
    let socket = socket(&node)?;
    let (mut all, mut own) = (Times::default(), Times::default());
    let mut files = None;
    for index in 0..TRIES + 10 {
        let mut volume = prepared(&node, index, "api")?;
        let before = waited(&node.metrics().await?);
        let took = publish_call(&socket, node.kubelet.publish_request(&volume.pod, &volume.volume)?).await?;
        let others = Duration::from_secs_f64((waited(&node.metrics().await?) - before).max(0.0));
        // The first few open connections and fill caches.
        if index >= 10 {
            all.push(took);
            own.push(took.saturating_sub(others));
        }
        if files.is_none() {
            files = Some(read(&volume.target())?);
        }
        volume.unpublish_once().await?;
        volume.unpublish(SOON).await?;
    }
    let floor = floor::mounts(node.layout.scratch.path(), &files.context("files")?, TRIES)?;
    for (percent, target) in [(50, "≤ 1 ms"), (99, "≤ 3 ms")] {
        table.figure(
            &format!("publish overhead, p{percent} of {}", own.len()),
            &own.percentile(percent).to_string(),
            target,
            &format!(
                "bare fsopen + write + mount {}; with identity and store {}",
                floor.percentile(percent),
                all.percentile(percent)
            ),
        )?;
    }
    Ok(())
}

/// A volume whose parent directories are there, as kubelet makes them.
pub(super) fn prepared(node: &Node, index: usize, account: &str) -> Result<PodVolume> {
    let volume = node.volume(&Pod::new("payments", &format!("{account}-{index}"), account), asked());
    std::fs::create_dir_all(volume.target().parent().context("a parent")?)?;
    Ok(volume)
}

/// Many volumes at once.
pub(super) async fn storm(table: &mut Table) -> Result<()> {
    let node = node().await?;
    let socket = socket(&node)?;
    let volumes: Vec<_> = (0..STORM)
        .map(|index| prepared(&node, index, &format!("account-{}", index % ACCOUNTS)))
        .collect::<Result<_>>()?;
    let requests: Vec<_> = volumes
        .iter()
        .map(|volume| node.kubelet.publish_request(&volume.pod, &volume.volume))
        .collect::<Result<_>>()?;
    let before = calls(&node).await?;
    let began = Instant::now();
    let times = try_join_all(requests.into_iter().map(|request| publish_call(&socket, request))).await?;
    let took = began.elapsed();
    let calls = calls(&node).await? - before;
    let mut all = Times::default();
    all.extend(times);
    let rate = f64::from(u32::try_from(STORM)?) / took.as_secs_f64();
    table.figure(
        &format!("storm of {STORM} volumes of {ACCOUNTS} accounts"),
        &format!("{rate:.0}/s"),
        "",
        &format!("all in {}, each with a key and a certificate of its own", Time(took)),
    )?;
    table.figure("  p50 of a publish in the storm", &all.percentile(50).to_string(), "", "")?;
    table.figure("  p99 of a publish in the storm", &all.percentile(99).to_string(), "", "")?;
    table.figure(
        "  store calls in the storm",
        &format!("{calls:.0}"),
        &format!("≤ {}", 2 * ACCOUNTS),
        "one per identity and reference, not per volume",
    )?;
    for mut volume in volumes {
        volume.unpublish_once().await?;
    }
    Ok(())
}

async fn calls(node: &Node) -> Result<f64> {
    Ok(node.metrics().await?.sum("countersign_fetch_seconds_count", &[]).unwrap_or_default())
}
