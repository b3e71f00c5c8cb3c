//! What can be seen of a node: what the agent counts, what arrives in a pod, what is left behind.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Node, SOON, Setup};
use crate::http::Metrics;
use crate::kubelet::PodVolume;
use crate::mount;
use crate::processes::{Descriptor, Process, tail};
use crate::reader;

/// How often a volume is republished where that is waited for; kubelet takes 60 to 90 s.
const REPUBLISH: Range<Duration> = Duration::from_millis(100)..Duration::from_millis(200);

impl Node {
    /// What the agent's `/metrics` shows.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::scrape(self.agent_http).await
    }

    /// Number of volumes the agent holds.
    pub async fn volumes_held(&self) -> Result<f64> {
        self.metrics().await?.sum("countersign_volumes", &[]).context("no metric countersign_volumes")
    }

    /// Waits until a file of a volume has this content.
    pub async fn arrives(&self, volume: &PodVolume, name: &str, content: &str) -> Result<()> {
        let target = volume.target();
        let seen = || reader::read_file(&target, name).unwrap_or_else(|error| format!("{error:#}"));
        eventually(SOON, &format!("{name} has its new content"), async || seen() == content)
            .await
            .with_context(seen)
    }

    /// The same while kubelet republishes, faster than it does: what brings a volume back to a new agent.
    pub async fn arrives_by_republish(
        &self,
        volume: &mut PodVolume,
        name: &str,
        content: &str,
    ) -> Result<()> {
        let target = volume.target();
        let seen = || reader::read_file(&target, name).unwrap_or_else(|error| format!("{error:#}"));
        let arrival = eventually(SOON, "the new content arrives", async || seen() == content);
        tokio::select! {
            arrived = arrival => arrived.with_context(seen),
            () = volume.republish_every(REPUBLISH) => Ok(()),
        }
    }

    /// Nothing of any pod is left: no mount, no directory, no volume in the agent.
    pub async fn is_clean(&self) -> Result<()> {
        let mounts = mount::beneath(&self.layout.kubelet_root)?;
        ensure!(
            mounts.is_empty(),
            "mounts are left: {}",
            mounts.iter().map(ToString::to_string).collect::<String>()
        );
        let remains = self.kubelet.remains()?;
        ensure!(remains.is_empty(), "directories are left: {remains:?}");
        if self.agent.is_some() && self.driver.is_some() {
            eventually(SOON, "the agent forgets all volumes", async || {
                self.volumes_held().await.is_ok_and(|n| n == 0.0)
            })
            .await?;
        }
        Ok(())
    }

    /// The descriptors of driver and agent, for the search after leaks.
    pub fn descriptors(&self) -> Result<[Vec<Descriptor>; 2]> {
        let of =
            |process: &Option<Process>| process.as_ref().map_or(Ok(Vec::new()), |p| Descriptor::all(p.pid()));
        Ok([of(&self.driver)?, of(&self.agent)?])
    }

    /// The ends of all logs.
    pub fn said(&self) -> String {
        let names = ["issuer", "agent", "driver"];
        let said = names.iter().map(|name| format!("--- {name}\n{}", tail(&self.layout.log(name), 25)));
        said.collect::<Vec<_>>().join("\n")
    }
}

/// Runs `body` on a node, sees that nothing is left, and shows the logs when something went wrong.
pub async fn on_node(setup: Setup, body: impl AsyncFnOnce(&mut Node) -> Result<()>) -> Result<()> {
    let mut node = Node::start(setup).await?;
    let outcome = async {
        body(&mut node).await?;
        node.is_clean().await.context("after the test")
    };
    outcome.await.map_err(|error| anyhow::anyhow!("{error:#}\n{}", node.said()))
}

/// Waits until `holds` answers true.
pub async fn eventually(within: Duration, what: &str, holds: impl AsyncFn() -> bool) -> Result<()> {
    let end = tokio::time::Instant::now() + within;
    while !holds().await {
        ensure!(tokio::time::Instant::now() < end, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
