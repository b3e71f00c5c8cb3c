//! For readers who run driver, agent and issuer by hand: a cluster's keys, and kubelet's part.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use sha2::{Digest, Sha256};

use super::show::listing;
use super::transcript::print;
use crate::kubelet;
use crate::node::{NODE, SOON};
use crate::pods::{Pod, Volume, hex};
use crate::scratch::replace_file;
use crate::tokens::Cluster;

/// Makes the cluster's files.
#[derive(Debug, Args)]
pub(super) struct Keys {
    /// Where they go: signing-key, jwks.json and agent-token.
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// The node the agent runs on.
    #[arg(long, default_value = NODE)]
    node: String,
}

impl Keys {
    pub(super) fn run(&self) -> Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let cluster = Cluster::load_or_create(&self.directory.join("signing-key"))?;
        replace_file(&self.directory.join("jwks.json"), cluster.jwks().as_bytes(), 0o644)?;
        replace_file(
            &self.directory.join("agent-token"),
            cluster.agent_token(&self.node)?.as_bytes(),
            0o600,
        )?;
        print(&format!("signing-key, jwks.json and agent-token are in {}", self.directory.display()))
    }
}

/// Plays kubelet.
#[derive(Debug, Args)]
pub(super) struct Kubelet {
    /// Kubelet's root directory, as the driver was told.
    #[arg(long = "kubelet-root")]
    root: PathBuf,
    /// Where `countersign-demo keys` put its files.
    #[arg(long, default_value = ".")]
    keys: PathBuf,
    /// The node.
    #[arg(long, default_value = NODE)]
    node: String,
    #[command(subcommand)]
    call: Call,
}

#[derive(Debug, Subcommand)]
enum Call {
    /// Publish a volume; once more: republish it.
    Publish {
        #[command(flatten)]
        pod: Who,
        /// An attribute of the volume, such as secret.countersign.dev/password=sops:payments/db#password.
        #[arg(long = "attribute", value_name = "KEY=VALUE", required = true)]
        attributes: Vec<String>,
    },
    /// Take a volume away.
    Unpublish {
        #[command(flatten)]
        pod: Who,
    },
}

#[derive(Debug, Args)]
struct Who {
    /// Name of the pod. Its uid is made from it.
    #[arg(long, default_value = "api")]
    pod: String,
    /// Its namespace.
    #[arg(long, default_value = "payments")]
    namespace: String,
    /// Its service account.
    #[arg(long, default_value = "api")]
    service_account: String,
    /// Its fsGroup.
    #[arg(long)]
    fs_group: Option<u32>,
}

impl Who {
    /// The same pod for the same name.
    fn pod(&self) -> Pod {
        let hash = hex(&Sha256::digest(format!("{}/{}", self.namespace, self.pod)));
        let part = |from: usize, to: usize| hash.get(from..to).unwrap_or_default();
        let uid =
            format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32));
        Pod { uid, fs_group: self.fs_group, ..Pod::new(&self.namespace, &self.pod, &self.service_account) }
    }
}

impl Kubelet {
    pub(super) async fn run(self) -> Result<()> {
        let cluster = Cluster::load_or_create(&self.keys.join("signing-key"))?;
        let kubelet = Arc::new(kubelet::Kubelet::new(&self.root, &self.node, Arc::new(cluster))?);
        let work = async {
            let driver = kubelet.registered(Duration::from_secs(10)).await?;
            match &self.call {
                Call::Publish { pod, attributes } => {
                    let mut volume = Volume::new();
                    for attribute in attributes {
                        let (key, value) = attribute
                            .split_once('=')
                            .with_context(|| format!("{attribute}: must be KEY=VALUE"))?;
                        volume = volume.with(key, value);
                    }
                    let mut volume = kubelet.volume(&pod.pod(), volume);
                    volume.publish_once().await.map_err(|status| {
                        anyhow::anyhow!("{}: {:?}: {}", driver.name, status.code(), status.message())
                    })?;
                    print(&format!(
                        "{}\n{}",
                        volume.target().display(),
                        listing(&volume.target())?.trim_end()
                    ))
                }
                Call::Unpublish { pod } => {
                    let mut volume = kubelet.volume(&pod.pod(), Volume::new());
                    volume.unpublish_once().await?;
                    volume.unpublish(SOON).await?;
                    print(&format!("{} is gone", volume.target().display()))
                }
            }
        };
        tokio::select! {
            done = work => done,
            () = kubelet.watch_plugins() => Ok(()),
        }
    }
}
