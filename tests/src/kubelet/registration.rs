//! Registration of plugins: kubelet watches a directory for sockets and asks who is there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use countersign_proto::csi::NodeGetInfoRequest;
use countersign_proto::registration::registration_client::RegistrationClient;
use countersign_proto::registration::{InfoRequest, RegistrationStatus};
use tokio::time::{sleep, timeout};

use super::Kubelet;
use super::socket::{csi_node, dial, plugin_manager_authority};

/// How often the directory is looked at. Kubelet is told by inotify; what it does then is the same.
const LOOK: Duration = Duration::from_millis(20);
/// Kubelet's limit for `GetInfo`.
const GET_INFO: Duration = Duration::from_secs(1);
/// Kubelet's limit for `NotifyRegistrationStatus`.
const NOTIFY: Duration = Duration::from_secs(5);

/// A registered CSI driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// Its name.
    pub name: String,
    /// Its CSI socket.
    pub endpoint: PathBuf,
    /// What it calls this node.
    pub node_id: String,
    /// The socket it registered with, which tells one registration from the next.
    socket: (PathBuf, Birth),
}

/// Tells a socket from an earlier one at the same path: numbers of inodes are used again.
type Birth = (u64, i64, i64);

impl Kubelet {
    /// Watches the registry for as long as it is polled, and registers and deregisters plugins as their sockets
    /// come and go.
    pub async fn watch_plugins(&self) {
        let mut seen = BTreeMap::new();
        loop {
            let now = sockets(&self.registry());
            seen.retain(|socket, birth| now.get(socket) == Some(birth));
            if self.plugin().is_some_and(|plugin| now.get(&plugin.socket.0) != Some(&plugin.socket.1)) {
                self.plugin.send_replace(None);
            }
            for (socket, birth) in now {
                // A failure is tried again with the next look: kubelet waits longer, to no other effect.
                if !seen.contains_key(&socket)
                    && let Ok(plugin) = self.register(&socket, birth).await
                {
                    self.plugin.send_replace(Some(plugin));
                    seen.insert(socket, birth);
                }
            }
            sleep(LOOK).await;
        }
    }

    /// The driver that is registered now.
    pub fn plugin(&self) -> Option<Plugin> {
        self.plugin.borrow().clone()
    }

    /// Waits for a driver to be registered while [`Kubelet::watch_plugins`] runs.
    pub async fn registered(&self, within: Duration) -> Result<Plugin> {
        let mut changes = self.plugin.subscribe();
        let found = timeout(within, changes.wait_for(Option::is_some)).await;
        let found = found.with_context(|| format!("no driver registered within {within:?}"))??;
        found.clone().context("a driver")
    }

    /// One registration, as kubelet does it: who are you, what do you call this node, you are registered.
    async fn register(&self, socket: &Path, birth: Birth) -> Result<Plugin> {
        let authority = plugin_manager_authority(socket);
        let channel = dial(socket, &authority, NOTIFY).await?;
        let mut client = RegistrationClient::new(channel);
        let info = timeout(GET_INFO, client.get_info(InfoRequest {})).await.context("GetInfo")??.into_inner();
        let outcome = async {
            ensure!(info.r#type == "CSIPlugin", "plugin type {:?}", info.r#type);
            ensure!(
                info.supported_versions.iter().any(|version| version.starts_with("1.")),
                "versions {:?}",
                info.supported_versions
            );
            let endpoint = PathBuf::from(&info.endpoint);
            let node = csi_node(&endpoint).await?.node_get_info(NodeGetInfoRequest {}).await?.into_inner();
            if node.node_id.is_empty() {
                bail!("the driver names no node");
            }
            let socket = (socket.to_owned(), birth);
            Ok(Plugin { name: info.name.clone(), endpoint, node_id: node.node_id, socket })
        }
        .await;
        let error = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
        client
            .notify_registration_status(RegistrationStatus { plugin_registered: outcome.is_ok(), error })
            .await
            .context("NotifyRegistrationStatus")?;
        outcome
    }
}

/// Sockets in the registry that kubelet would dial.
fn sockets(registry: &Path) -> BTreeMap<PathBuf, Birth> {
    let entries = fs::read_dir(registry).into_iter().flatten().flatten();
    let candidates = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    candidates
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((entry.path(), (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())))
        })
        .collect()
}
