//! A node with pods on it, all of whose volumes ask for the same kinds of files.

use anyhow::{Context, Result};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::json;

use crate::kubelet::PodVolume;
use crate::node::{Node, SOON, Setup};
use crate::pods::{Pod, Volume};
use crate::processes::Process;

use super::calls::{Calls, end};

/// Different secrets that each volume asks for: a read for each, whatever is made of it.
pub(super) const REFERENCES: u64 = 2;
/// Pods of one service account.
pub(super) const PODS_OF_AN_ACCOUNT: u32 = 10;
/// Publishes under way at once where their time is not measured.
const AT_ONCE: usize = 8;
/// A refresh that does not come while we measure.
pub(super) const NEVER: &str = "24h";

/// The node, and the volumes published on it.
#[derive(Debug)]
pub(super) struct Load {
    /// The node.
    pub(super) node: Node,
    /// All volumes that are mounted.
    pub(super) volumes: Vec<PodVolume>,
    refresh: Option<&'static str>,
}

impl Load {
    /// A node without pods. Secrets are looked at again at `refresh`, or as often as by default.
    pub(super) async fn start(refresh: Option<&'static str>) -> Result<Self> {
        let node = Node::start(Setup::default()).await?;
        node.store
            .write("payments/db", &json!({"username": "app", "password": "correct horse battery staple"}))?;
        let hosts: Vec<_> = (0..16).map(|n| format!("https://api-{n}.payments.example.org")).collect();
        node.store.write("payments/api", &json!({"hosts": hosts, "key": "7f3c".repeat(16)}))?;
        Ok(Self { node, volumes: Vec::new(), refresh })
    }

    /// Pod number `index`, whose volume asks for six files from two secrets and its SVID.
    pub(super) fn pod(&self, index: usize) -> PodVolume {
        let account = format!("account-{}", index / PODS_OF_AN_ACCOUNT as usize);
        let pod = Pod::new("payments", &format!("pod-{index}"), &account);
        let template = "URL=postgres://{{ secret(\"sops:payments/db\").username }}:\
                        {{ secret(\"sops:payments/db\").password }}@db/app\n";
        let mut volume = Volume::new()
            .secret("db-password", "sops:payments/db#password")
            .secret("api.json", "sops:payments/api")
            .template("app.env", template)
            .x509();
        if let Some(every) = self.refresh {
            volume = volume.refresh(every);
        }
        self.node.volume(&pod, volume)
    }

    /// Publishes volumes, as kubelet does, until there are `count`.
    pub(super) async fn grow_to(&mut self, count: usize) -> Result<()> {
        let more: Vec<_> = (self.volumes.len()..count).map(|index| self.pod(index)).collect();
        let published = stream::iter(more).map(async |mut volume| {
            volume.publish(SOON).await?;
            Ok::<_, anyhow::Error>(volume)
        });
        self.volumes.extend(published.buffered(AT_ONCE).try_collect::<Vec<_>>().await?);
        Ok(())
    }

    /// The calls that can be timed.
    pub(super) fn calls(&self) -> Result<Calls> {
        Calls::of(&self.node)
    }

    /// A counter of the agent's, over all its labels.
    pub(super) async fn counter(&self, name: &str) -> Result<u64> {
        let value = self.node.metrics().await?.sum(name, &[]).with_context(|| format!("no metric {name}"))?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counters count from zero"
        )]
        Ok(value as u64)
    }

    /// Driver and agent.
    pub(super) fn processes(&self) -> Result<[&Process; 2]> {
        let (driver, agent) = (self.node.driver.as_ref(), self.node.agent.as_ref());
        Ok([driver.context("the driver runs")?, agent.context("the agent runs")?])
    }

    /// Unpublishes everything, and sees that nothing is left.
    pub(super) async fn end(self) -> Result<()> {
        let gone = stream::iter(self.volumes).map(|mut volume| async move { end(&mut volume).await });
        gone.buffered(AT_ONCE).try_collect::<Vec<_>>().await?;
        self.node.is_clean().await
    }
}
