//! One volume of a pod, from the first try to mount it until the pod's directory is gone.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_proto::csi::{
    NodeGetCapabilitiesRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
};
use rand::Rng;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::{Backoff, Kubelet, csi_node, directory, volume_id};
use crate::mount;
use crate::pods::{Pod, Volume};

/// What kubelet believes of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Never mounted, or a first try ended for good: unpublish will not be called.
    Unmounted,
    /// A try failed in a way that leaves it open: unpublish will be called.
    Uncertain,
    /// Mounted.
    Mounted,
}

/// Why a volume isn't published.
#[derive(Debug)]
pub struct Trouble {
    /// What the driver said last.
    pub status: Status,
    /// Tries made.
    pub tries: u32,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "after {} tries: {:?}: {}", self.tries, self.status.code(), self.status.message())
    }
}

impl std::error::Error for Trouble {}

/// A pod's volume.
#[derive(Debug)]
pub struct PodVolume {
    kubelet: Arc<Kubelet>,
    /// The pod.
    pub pod: Pod,
    /// The volume.
    pub volume: Volume,
    state: State,
}

impl PodVolume {
    pub(super) fn new(kubelet: Arc<Kubelet>, pod: Pod, volume: Volume) -> Self {
        Self { kubelet, pod, volume, state: State::Unmounted }
    }

    /// Its id.
    pub fn id(&self) -> String {
        volume_id(&self.pod, &self.volume)
    }

    /// Where it is mounted.
    pub fn target(&self) -> PathBuf {
        self.kubelet.target(&self.pod, &self.volume)
    }

    /// What kubelet believes.
    pub fn state(&self) -> State {
        self.state
    }

    /// One try of kubelet's to mount the volume, with everything it does around it.
    pub async fn publish_once(&mut self) -> Result<(), Status> {
        let request = self.kubelet.publish_request(&self.pod, &self.volume).map_err(broken)?;
        self.publish_with(request).await
    }

    /// The same with a request that was tampered with.
    pub async fn publish_with(&mut self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.prepare().map_err(broken)?;
        let answer = self.call(request).await;
        match (&answer, self.state) {
            (Ok(()), _) => self.state = State::Mounted,
            // A republish that fails takes nothing away.
            (Err(_), State::Mounted) => {}
            (Err(status), _) if !is_final(status.code()) => self.state = State::Uncertain,
            // A final answer means that the driver undid everything: kubelet removes its own and never asks for
            // an unpublish, unless an earlier try left it open.
            (Err(_), State::Unmounted) => self.remove_directories().map_err(broken)?,
            (Err(_), State::Uncertain) => {}
        }
        answer
    }

    async fn call(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        let socket = self.endpoint()?;
        // Kubelet looks for VOLUME_MOUNT_GROUP and for SINGLE_NODE_MULTI_WRITER before each publish.
        for _ in 0..2 {
            csi_node(&socket).await?.node_get_capabilities(NodeGetCapabilitiesRequest {}).await?;
        }
        csi_node(&socket).await?.node_publish_volume(request).await.map(drop)
    }

    fn endpoint(&self) -> Result<PathBuf, Status> {
        let plugin = self.kubelet.plugin();
        plugin.map(|plugin| plugin.endpoint).ok_or_else(|| {
            Status::unavailable("the driver is not found in the list of registered CSI drivers")
        })
    }

    /// Mounts the volume, with kubelet's patience, for so long.
    pub async fn publish(&mut self, within: Duration) -> Result<(), Trouble> {
        let mut tries = Tries::new(self.kubelet.backoff, within);
        while let Err(status) = self.publish_once().await {
            tries.again(status).await?;
        }
        Ok(())
    }

    /// Calls the driver again for a mounted volume, as `requiresRepublish` has it, for as long as it is polled.
    /// Kubelet's own interval is 60 to 90 s.
    pub async fn republish_every(&mut self, interval: Range<Duration>) {
        loop {
            let pause = rand::rng().random_range(interval.clone());
            sleep(pause).await;
            // What fails shows in the pod's events and is tried again; the mount stays.
            drop(self.publish_once().await);
        }
    }

    /// One try to unmount the volume.
    pub async fn unpublish_once(&mut self) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: self.id(),
            target_path: text(&self.target()).map_err(broken)?,
        };
        let socket = self.endpoint()?;
        csi_node(&socket).await?.node_unpublish_volume(request).await?;
        self.remove_directories().map_err(broken)?;
        self.state = State::Unmounted;
        Ok(())
    }

    /// The pod goes: unmounts its volume when kubelet believes that there may be one, and removes the pod's
    /// directories as the clean-up of orphans does, which takes empty directories only.
    pub async fn unpublish(&mut self, within: Duration) -> Result<()> {
        let mut tries = Tries::new(self.kubelet.backoff, within);
        while self.state != State::Unmounted
            && let Err(status) = self.unpublish_once().await
        {
            tries.again(status).await?;
        }
        self.remove_pod()
    }

    /// What kubelet makes before each try: the parent of the target and its own notes beside it.
    fn prepare(&self) -> Result<()> {
        let target = self.target();
        let beside = target.parent().context("a target has a parent")?;
        directory(beside, 0o750)?;
        let notes = json!({
            "driverName": "csi.countersign.dev", "nodeName": self.kubelet.node, "volumeHandle": self.id(),
            "specVolID": self.volume.name, "volumeLifecycleMode": "Ephemeral", "attachmentID": "",
        });
        fs::write(beside.join("vol_data.json"), notes.to_string())?;
        Ok(())
    }

    /// Kubelet's own removal: only if nothing is mounted, only empty directories.
    fn remove_directories(&self) -> Result<()> {
        let target = self.target();
        if mount::at(&target)?.is_some() {
            anyhow::bail!("{} is still mounted", target.display());
        }
        let beside = target.parent().context("a target has a parent")?;
        absent_is_fine(fs::remove_dir(&target)).with_context(|| target.display().to_string())?;
        absent_is_fine(fs::remove_file(beside.join("vol_data.json")))?;
        absent_is_fine(fs::remove_dir(beside)).with_context(|| beside.display().to_string())
    }

    fn remove_pod(&self) -> Result<()> {
        self.remove_directories()?;
        let pod = self.kubelet.root.join("pods").join(&self.pod.uid);
        for directory in [pod.join("volumes/kubernetes.io~csi"), pod.join("volumes"), pod] {
            match fs::remove_dir(&directory) {
                // Another volume of the pod is still there.
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => return Ok(()),
                other => absent_is_fine(other).with_context(|| directory.display().to_string())?,
            }
        }
        Ok(())
    }
}

/// Codes after which kubelet takes it that nothing was mounted.
fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

/// Tries with doubling pauses between them.
struct Tries {
    pause: Duration,
    most: Duration,
    end: Instant,
    made: u32,
}

impl Tries {
    fn new(backoff: Backoff, within: Duration) -> Self {
        Self { pause: backoff.first, most: backoff.most, end: Instant::now() + within, made: 0 }
    }

    async fn again(&mut self, status: Status) -> Result<(), Trouble> {
        self.made += 1;
        if Instant::now() + self.pause > self.end {
            return Err(Trouble { status, tries: self.made });
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(self.most);
        Ok(())
    }
}

/// Trouble of the stand-in's own.
fn broken<E: Into<anyhow::Error>>(error: E) -> Status {
    let error = error.into();
    Status::unavailable(format!("kubelet stand-in: {error:#}"))
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

fn absent_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
