//! Where everything of a node lies, and who may read it: as the volumes of the pods would have it in a cluster.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::DRIVER;
use crate::scratch::{Scratch, give_to, replace_file};

/// One rule of the store's policy.
#[derive(Debug, Clone)]
pub struct Allow {
    id: String,
    paths: Vec<String>,
}

impl Allow {
    /// Who may read which paths.
    pub fn new(id: &str, paths: &[&str]) -> Self {
        Self { id: id.to_owned(), paths: paths.iter().map(|&path| path.to_owned()).collect() }
    }
}

/// Paths on the node.
#[derive(Debug)]
pub struct Layout {
    /// Kubelet's root directory: closed to all but root.
    pub kubelet_root: PathBuf,
    /// The emptyDir that driver and agent share.
    pub link: PathBuf,
    /// Directory of the SOPS files.
    pub store: PathBuf,
    /// The agent's age key.
    pub age_key: PathBuf,
    /// The agent's configuration.
    pub config: PathBuf,
    /// The agent's own service account token.
    pub agent_token: PathBuf,
    /// The issuer's trust bundle, PEM.
    pub bundle: PathBuf,
    /// The cluster's keys.
    pub jwks: PathBuf,
    logs: PathBuf,
    agent_uid: u32,
    /// The directory of it all; removed when dropped, last of all.
    pub scratch: Scratch,
}

impl Layout {
    /// Makes the directories for an agent of this uid.
    pub fn new(agent_uid: u32) -> Result<Self> {
        let scratch = Scratch::new()?;
        let owned = |name: &str| {
            let path = scratch.directory(name, 0o700)?;
            give_to(&path, agent_uid).map(|()| path)
        };
        let (link, agent, issuer) = (owned("link")?, owned("agent")?, owned("issuer")?);
        Ok(Self {
            kubelet_root: scratch.directory("kubelet", 0o750)?,
            store: scratch.directory("store", 0o755)?,
            logs: scratch.directory("logs", 0o755)?,
            age_key: agent.join("age.key"),
            config: agent.join("config.yaml"),
            agent_token: agent.join("token"),
            bundle: issuer.join("bundle.pem"),
            jwks: issuer.join("jwks.json"),
            link,
            agent_uid,
            scratch,
        })
    }

    /// The file a process logs to.
    pub fn log(&self, process: &str) -> PathBuf {
        self.logs.join(format!("{process}.log"))
    }

    /// The driver's CSI socket, in a directory of its own beneath kubelet's plugins.
    pub fn csi_socket(&self) -> Result<PathBuf> {
        let directory = self.kubelet_root.join("plugins").join(DRIVER);
        fs::create_dir_all(&directory)?;
        Ok(directory.join("csi.sock"))
    }

    /// Writes what issuer and agent know of the cluster.
    pub fn write_identity_files(&self, jwks: &str, agent_token: &str) -> Result<()> {
        replace_file(&self.jwks, jwks.as_bytes(), 0o644)?;
        replace_file(&self.agent_token, agent_token.as_bytes(), 0o600)?;
        [&self.jwks, &self.agent_token].into_iter().try_for_each(|file| give_to(file, self.agent_uid))
    }

    /// Writes the agent's configuration: the store `sops`, whose age key must be there, and others.
    pub fn write_config(&self, allow: &[Allow], others: &Map<String, Value>) -> Result<()> {
        let allow: Vec<_> = allow.iter().map(|rule| json!({"id": rule.id, "paths": rule.paths})).collect();
        let mut stores = others.clone();
        let sops = json!({
            "type": "sops", "directory": self.store, "ageKeyFile": self.age_key, "allow": allow,
        });
        stores.insert("sops".to_owned(), sops);
        let config = json!({"stores": stores});
        // JSON is YAML.
        replace_file(&self.config, config.to_string().as_bytes(), 0o600)
            .context("the agent's configuration")?;
        [&self.config, &self.age_key].into_iter().try_for_each(|file| give_to(file, self.agent_uid))
    }
}
