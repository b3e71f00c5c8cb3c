//! What happens when a process is killed.

use anyhow::{Context, Result};

use super::super::carrier::Carrier;
use super::Story;
use crate::mount;
use crate::reader::read;

impl Story {
    pub(super) async fn lose_driver(&mut self, carrier: &mut Carrier) -> Result<()> {
        self.transcript.step(
            "The driver is killed (SIGKILL) and started again",
            "Mounts live in the kernel, which is the only database there is: nothing is kept on disk. The agent holds \
             its descriptor and goes on refreshing while the driver is away.",
        )?;
        self.node.kill_driver()?;
        self.rotate(carrier, "third-password").await?;
        self.node.start_driver().await?;
        let plugin = self.node.kubelet.plugin();
        self.transcript.claim(plugin.is_some(), "the new driver is registered")?;
        carrier.publish_once(&self.node).await.context("republish")?;
        let count = mount::beneath(&self.node.layout.kubelet_root)?.len();
        self.transcript.claim(count == 1, "kubelet's next republish finds the volume mounted, once")?;
        self.rotate(carrier, "fourth-password").await?;
        self.transcript.done()
    }

    pub(super) async fn lose_agent(&mut self, carrier: &mut Carrier) -> Result<()> {
        self.transcript.step(
            "The agent is killed (SIGKILL) and started again",
            "Its memory is gone, and with it every identity and secret; the files stay, for they are the kernel's. \
             Kubelet's next republish (every 60 to 90 s; here at once) brings the pod's token again, and the driver a \
             descriptor.",
        )?;
        let before = read(&carrier.target())?;
        self.node.kill_agent()?;
        self.transcript.claim(read(&carrier.target())? == before, "the files stay while no agent runs")?;
        self.node.start_agent().await?;
        self.transcript
            .claim(read(&carrier.target())? == before, "the files stay when a new agent starts")?;
        carrier.republish_until_held(&self.node).await.context("republish")?;
        self.rotate(carrier, "fifth-password").await?;
        self.transcript.done()
    }
}
