//! More than one server of the same secrets: the active one, and those that stand by.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use countersign_tests::node::{START, eventually};
use countersign_tests::scratch::Scratch;

use super::Vault;
use crate::api::Api;

/// Where servers of one cluster keep what they know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Storage {
    /// Each has all of it, and what a standby is asked is asked of the active one in turn.
    #[default]
    Raft,
    /// A PostgreSQL at this URL has it, and standbys send whoever asks away to the active one.
    Shared(String),
}

/// Health of the active one, and of one that stands by.
const ACTIVE: u16 = 200;
const STANDS_BY: u16 = 429;

impl Storage {
    pub(super) fn config(&self, scratch: &Scratch, address: SocketAddr) -> Result<Value> {
        Ok(match self {
            Self::Raft => json!({"storage": {"raft": {
                "path": scratch.directory("raft", 0o700)?, "node_id": address.to_string(), "performance_multiplier": 1,
            }}}),
            Self::Shared(url) => json!({
                "storage": {"postgresql": {"connection_url": url, "ha_enabled": "true"}},
                "disable_clustering": true,
            }),
        })
    }
}

impl Vault {
    /// Another server of the same secrets, which stands by.
    pub async fn join(&self, address: SocketAddr) -> Result<Self> {
        let mut other = self.sibling(address)?;
        other.run().await?;
        if self.storage == Storage::Raft {
            let leader = json!({"leader_api_addr": self.url(), "leader_ca_cert": self.authority.pem()});
            other.anonymous.write("sys/storage/raft/join", &leader).await.context("joining")?;
        }
        // It takes the key when it has heard from the active one.
        let opened = async || {
            if other.health().await == Some(STANDS_BY) {
                return true;
            }
            other.unlock().await.ok();
            false
        };
        eventually(START, "it stands by", opened).await.with_context(|| other.said())?;
        if self.storage == Storage::Raft {
            self.all_vote().await.with_context(|| other.said())?;
        }
        Ok(other)
    }

    /// Waits until all that have joined may elect, and be elected: not before they have been there for a while.
    async fn all_vote(&self) -> Result<()> {
        let root = self.root();
        let soon = json!({"server_stabilization_time": "1s"});
        root.write("sys/storage/raft/autopilot/configuration", &soon).await?;
        let all = async || {
            let config = root.read("sys/storage/raft/configuration").await.unwrap_or_default();
            let servers = config.pointer("/data/config/servers").and_then(Value::as_array);
            servers.is_some_and(|servers| servers.iter().all(|server| server["voter"] == true))
        };
        eventually(START * 2, "all of them vote", all).await
    }

    /// One more of the same cluster, which does not run yet.
    fn sibling(&self, address: SocketAddr) -> Result<Self> {
        let sibling = Self {
            process: None,
            kind: self.kind,
            binary: self.binary.clone(),
            environment: self.environment.clone(),
            storage: self.storage.clone(),
            address,
            anonymous: Api::new(address, &self.authority)?,
            authority: Arc::clone(&self.authority),
            unseal_key: self.unseal_key.clone(),
            root_token: self.root_token.clone(),
            audit_file: self.audit_file.clone(),
            scratch: Scratch::new()?,
        };
        sibling.configure()?;
        Ok(sibling)
    }

    /// Whether it is the active one.
    pub async fn is_active(&self) -> bool {
        self.health().await == Some(ACTIVE)
    }

    /// Has the active one leave that to another.
    pub async fn step_down(&self) -> Result<()> {
        self.root().write("sys/step-down", &Value::Null).await.map(drop)
    }
}
