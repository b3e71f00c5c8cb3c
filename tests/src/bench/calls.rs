//! Kubelet's calls, timed one by one: what kubelet's stand-in does for itself, a token made and directories laid, is not
//! in the time.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_proto::csi::{NodePublishVolumeRequest, ProbeRequest};
use tokio::time::Instant;
use tonic::Status;

use crate::kubelet::{PodVolume, csi_identity, csi_node};
use crate::node::{Node, SOON};

/// Takes away a volume that was published by [`Calls::publish`], of which kubelet's stand-in has no notes.
///
/// # Errors
/// When it cannot be unpublished, or leaves something.
pub async fn end(volume: &mut PodVolume) -> Result<()> {
    volume.unpublish_once().await?;
    volume.unpublish(SOON).await
}

/// What kubelet sends for a volume, with the directory it makes first.
///
/// # Errors
/// When the directory or the pod's token cannot be made.
pub fn prepared(node: &Node, volume: &PodVolume) -> Result<NodePublishVolumeRequest> {
    let target = volume.target();
    fs::create_dir_all(target.parent().context("a target has a parent")?)?;
    node.kubelet.publish_request(&volume.pod, &volume.volume)
}

/// Kubelet's calls, each timed with the connection that kubelet makes for it.
#[derive(Debug, Clone)]
pub struct Calls {
    socket: PathBuf,
}

impl Calls {
    /// Calls of the node's driver.
    ///
    /// # Errors
    /// When no driver is registered.
    pub fn of(node: &Node) -> Result<Self> {
        let plugin = node.kubelet.plugin().context("a registered driver")?;
        Ok(Self { socket: plugin.endpoint })
    }

    /// `NodePublishVolume`.
    ///
    /// # Errors
    /// The driver's.
    pub async fn publish(&self, request: NodePublishVolumeRequest) -> Result<Duration, Status> {
        let began = Instant::now();
        csi_node(&self.socket).await?.node_publish_volume(request).await?;
        Ok(began.elapsed())
    }

    /// `Probe`: the least that a call can be.
    ///
    /// # Errors
    /// The driver's.
    pub async fn probe(&self) -> Result<Duration, Status> {
        let began = Instant::now();
        csi_identity(&self.socket).await?.probe(ProbeRequest {}).await?;
        Ok(began.elapsed())
    }
}

/// Times by the agent's own clock, all that it has seen until now.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// In publishes.
    pub publish: Duration,
    /// Waiting for SVIDs, those for logins among them.
    pub identity: Duration,
    /// In reads from stores, the logins for them and their SVIDs included.
    pub fetch: Duration,
}

impl Clocks {
    /// Reads the agent's metrics.
    ///
    /// # Errors
    /// When they cannot be had, or lack a name.
    pub async fn of(node: &Node) -> Result<Self> {
        let metrics = node.metrics().await?;
        let time = |name: &str| metrics.sum(name, &[]).map(Duration::from_secs_f64);
        let named = |name: &str| time(name).with_context(|| format!("no metric {name}"));
        Ok(Self {
            publish: named("countersign_publish_seconds_sum")?,
            identity: named("countersign_identity_seconds_sum")?,
            // There is none before the first read.
            fetch: time("countersign_fetch_seconds_sum").unwrap_or_default(),
        })
    }

    /// What was added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            publish: self.publish.saturating_sub(earlier.publish),
            identity: self.identity.saturating_sub(earlier.identity),
            fetch: self.fetch.saturating_sub(earlier.fetch),
        }
    }
}
