//! A stand-in for kubelet: it registers a driver and publishes volumes as kubelet does (measured on 1.36), call by
//! call and error by error.

mod registration;
mod socket;
#[cfg(test)]
mod tests;
mod volume;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode};
use countersign_proto::csi::{NodePublishVolumeRequest, VolumeCapability};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::pods::{Pod, Volume, hex};
use crate::tokens::{AUDIENCE, Cluster};
use crate::wall;

pub use registration::Plugin;
pub use socket::{csi_identity, csi_node};
pub use volume::{PodVolume, State, Trouble};

/// Where kubelet puts the tokens of `tokenRequests`.
pub const TOKENS_KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// Life of the pods' tokens in seconds: the least that an API server grants.
const TOKEN_SECONDS: i64 = 600;

/// Kubelet on one node.
#[derive(Debug)]
pub struct Kubelet {
    root: PathBuf,
    node: String,
    cluster: Arc<Cluster>,
    plugin: watch::Sender<Option<Plugin>>,
    backoff: Backoff,
    tokens: Mutex<HashMap<String, CachedToken>>,
}

/// A token kubelet keeps for a pod.
#[derive(Debug, Clone)]
struct CachedToken {
    token: String,
    renew_at: i64,
}

/// How long kubelet waits between two tries.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first failure; doubled after each.
    pub first: Duration,
    /// The longest.
    pub most: Duration,
}

impl Default for Backoff {
    /// Kubelet's own: 0.5 s doubling to 2 min 2 s.
    fn default() -> Self {
        Self { first: Duration::from_millis(500), most: Duration::from_secs(122) }
    }
}

impl Kubelet {
    /// Kubelet with its root directory, made when it is not there.
    pub fn new(root: &Path, node: &str, cluster: Arc<Cluster>) -> Result<Self> {
        for (name, mode) in [("pods", 0o750), ("plugins", 0o750), ("plugins_registry", 0o755)] {
            directory(&root.join(name), mode)?;
        }
        Ok(Self {
            root: root.canonicalize()?,
            node: node.to_owned(),
            cluster,
            plugin: watch::Sender::new(None),
            backoff: Backoff::default(),
            tokens: Mutex::default(),
        })
    }

    /// The same kubelet with less patience than the real one has.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// The root directory (`/var/lib/kubelet` on most nodes).
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Name of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The cluster whose tokens it hands over.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Where plugins put their registration sockets.
    pub fn registry(&self) -> PathBuf {
        self.root.join("plugins_registry")
    }

    /// Where a pod's volume is to appear.
    pub fn target(&self, pod: &Pod, volume: &Volume) -> PathBuf {
        self.root
            .join("pods")
            .join(&pod.uid)
            .join("volumes/kubernetes.io~csi")
            .join(&volume.name)
            .join("mount")
    }

    /// The pod's token: the same for every volume and try, until 80 % of its life are over.
    fn token(&self, pod: &Pod) -> Result<String> {
        let now = wall::unix();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = tokens.get(&pod.uid).filter(|cached| cached.renew_at > now) {
            return Ok(cached.token.clone());
        }
        let token = self.cluster.token(pod, &self.node, AUDIENCE, TOKEN_SECONDS)?;
        let renew_at = now + TOKEN_SECONDS * 4 / 5;
        tokens.insert(pod.uid.clone(), CachedToken { token: token.clone(), renew_at });
        Ok(token)
    }

    /// The next request brings a new token, as when kubelet has been restarted.
    pub fn forget_tokens(&self) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The request kubelet would send.
    pub fn publish_request(&self, pod: &Pod, volume: &Volume) -> Result<NodePublishVolumeRequest> {
        let token = self.token(pod)?;
        let mut volume_context: HashMap<_, _> = volume.attributes.clone().into_iter().collect();
        volume_context.extend([
            ("csi.storage.k8s.io/pod.name".to_owned(), pod.name.clone()),
            ("csi.storage.k8s.io/pod.namespace".to_owned(), pod.namespace.clone()),
            ("csi.storage.k8s.io/pod.uid".to_owned(), pod.uid.clone()),
            ("csi.storage.k8s.io/serviceAccount.name".to_owned(), pod.service_account.clone()),
            ("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned()),
        ]);
        let mount = MountVolume {
            volume_mount_group: pod.fs_group.map(|gid| gid.to_string()).unwrap_or_default(),
            ..MountVolume::default()
        };
        Ok(NodePublishVolumeRequest {
            volume_id: volume_id(pod, volume),
            target_path: self.target(pod, volume).to_str().context("a target path in UTF-8")?.to_owned(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(mount)),
                access_mode: Some(AccessMode { mode: access_mode::Mode::SingleNodeWriter.into() }),
            }),
            readonly: volume.read_only,
            secrets: [(TOKENS_KEY.to_owned(), tokens(&BTreeMap::from([(AUDIENCE, token)])))].into(),
            volume_context,
            ..NodePublishVolumeRequest::default()
        })
    }

    /// A pod's volume as this kubelet sees it: not published yet.
    pub fn volume(self: &Arc<Self>, pod: &Pod, volume: Volume) -> PodVolume {
        PodVolume::new(Arc::clone(self), pod.clone(), volume)
    }

    /// Everything beneath the pods directory, for the search after leaks: none is left when all pods are gone.
    pub fn remains(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        walk(&self.root.join("pods"), &mut found)?;
        Ok(found)
    }
}

/// The text under [`TOKENS_KEY`] for tokens by their audience.
pub fn tokens(by_audience: &BTreeMap<&str, String>) -> String {
    let entries = by_audience.iter().map(|(audience, token)| {
        ((*audience).to_owned(), json!({"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}))
    });
    serde_json::Value::Object(entries.collect()).to_string()
}

/// Kubelet's formula for the id of an inline volume.
pub fn volume_id(pod: &Pod, volume: &Volume) -> String {
    let hash = Sha256::new().chain_update(&pod.uid).chain_update(&volume.name).finalize();
    format!("csi-{}", hex(&hash))
}

/// Makes a directory and those above it with kubelet's mode, whatever the umask.
fn directory(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).with_context(|| path.display().to_string())
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        found.push(entry.path());
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), found)?;
        }
    }
    Ok(())
}
