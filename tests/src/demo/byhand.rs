//! For readers who run driver, agent and issuer by hand: a cluster's keys, and kubelet's part.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::show::listing;
use super::transcript::print;
use crate::kubelet;
use crate::node::{NODE, SOON};
use crate::pods::{Pod, Volume, hex};
use crate::processes::Binaries;
use crate::scratch::replace_file;
use crate::store::SopsStore;
use crate::tokens::Cluster;

/// Makes what a cluster would give.
#[derive(Debug, Args)]
pub(super) struct Prepare {
    /// A directory for it all; made when it is not there.
    directory: PathBuf,
}

impl Prepare {
    pub(super) fn run(&self) -> Result<()> {
        let binaries = Binaries::find()?;
        fs::create_dir_all(&self.directory)?;
        let root = self.directory.canonicalize()?;
        for name in ["link", "store"] {
            fs::create_dir_all(root.join(name))?;
        }
        let cluster = Arc::new(Cluster::load_or_create(&root.join("signing-key"))?);
        // Kubelet's own directories are there before any plugin.
        kubelet::Kubelet::new(&root.join("kubelet"), NODE, Arc::clone(&cluster))?;
        replace_file(&root.join("jwks.json"), cluster.jwks().as_bytes(), 0o644)?;
        replace_file(&root.join("agent-token"), cluster.agent_token(NODE)?.as_bytes(), 0o600)?;
        let key = root.join("age.key");
        if key.exists() {
            fs::remove_file(&key)?;
        }
        let store = SopsStore::new(&binaries.agent, &root.join("store"), &key)?;
        store.write("payments/database", &json!({"username": "app", "password": "first-password"}))?;
        let config = json!({"stores": {"sops": {
            "type": "sops", "directory": store.directory(), "ageKeyFile": key,
            "allow": [{"id": "spiffe://example.org/ns/payments/sa/api", "paths": ["payments/*"]}],
        }}});
        replace_file(&root.join("config.yaml"), serde_json::to_string_pretty(&config)?.as_bytes(), 0o600)?;
        print(&commands(&root, &binaries))
    }
}

/// The rest, to be copied into a shell.
fn commands(root: &Path, binaries: &Binaries) -> String {
    let (root, agent, driver) = (root.display(), binaries.agent.display(), binaries.driver.display());
    let demo = std::env::current_exe().unwrap_or_else(|_| "countersign-demo".into());
    let demo = demo.display();
    format!(
        "# In one shell: as root, or after `unshare -Urm`. What is here is for a trial and for nothing else.\n\
         {agent} issuer --trust-domain example.org --reviewer jwks --jwks {root}/jwks.json \\\n    \
         --listen 127.0.0.1:8443 --bundle-out {root}/bundle.pem &\n\
         {agent} run --trust-domain example.org --issuer-address 127.0.0.1:8443 --issuer-bundle {root}/bundle.pem \\\n    \
         --agent-token {root}/agent-token --config {root}/config.yaml --link-dir {root}/link &\n\
         {driver} --node-id {NODE} --agent-uid 0 --kubelet-root {root}/kubelet --link-dir {root}/link &\n\
         {demo} kubelet {root} publish --attribute 'secret.countersign.dev/password=sops:payments/database#password' \\\n    \
         --attribute 'jwt.countersign.dev/token=https://api.example.com' --attribute 'countersign.dev/refresh=5s'\n\
         {demo} kubelet {root} unpublish"
    )
}

/// Plays kubelet.
#[derive(Debug, Args)]
pub(super) struct Kubelet {
    /// The directory that `countersign-demo prepare` made.
    directory: PathBuf,
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
        let cluster = Cluster::load_or_create(&self.directory.join("signing-key"))?;
        let root = self.directory.join("kubelet");
        let kubelet = Arc::new(kubelet::Kubelet::new(&root, NODE, Arc::new(cluster))?);
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
