//! What is refused, and what the user reads then.

use anyhow::Result;
use tonic::{Code, Status};

use super::super::carrier::Carrier;
use super::Story;
use crate::mount;
use crate::pods::{Pod, Volume};

impl Story {
    /// A pod of another service account asks for the same secret.
    pub(super) async fn stranger(&mut self) -> Result<()> {
        self.transcript.step(
            "Another service account asks for the same secret",
            "Same node, same driver, another identity: the store's policy decides on the SPIFFE ID, which nobody can choose \
             for themselves. This is what `kubectl describe pod` shows.",
        )?;
        let pod = Pod::new("payments", "reporting-1", "reporting");
        let volume = Volume::new().secret("db-password", "sops:payments/database#password");
        let status = self.refused(&pod, volume).await?;
        self.transcript.claim(status.code() == Code::PermissionDenied, "refused: PERMISSION_DENIED")?;
        let named = status.message().contains("spiffe://example.org/ns/payments/sa/reporting");
        self.transcript.claim(named, "the message names who was refused")?;
        self.transcript.done()
    }

    /// A key is misspelt.
    pub(super) async fn typo(&mut self) -> Result<()> {
        self.transcript.step(
            "A key is misspelt",
            "An unknown key is an error, never silently nothing; the message says what was meant.",
        )?;
        let pod = Pod::new("payments", "api-typo", "api");
        let volume =
            Volume::new().with("secrets.countersign.dev/db-password", "sops:payments/database#password");
        let status = self.refused(&pod, volume).await?;
        self.transcript.claim(status.code() == Code::InvalidArgument, "refused: INVALID_ARGUMENT")?;
        let named = status.message().contains("secret.countersign.dev");
        self.transcript.claim(named, "the message names the nearest known key")?;
        self.transcript.done()
    }

    /// Publishes what must be refused, and sees that nothing is left of it.
    async fn refused(&mut self, pod: &Pod, volume: Volume) -> Result<Status> {
        let mut carrier = Carrier::new(&self.node, pod, volume, self.mounts)?;
        let status = match carrier.publish_once(&self.node).await {
            Ok(()) => Status::ok("it was published"),
            Err(status) => status,
        };
        self.transcript.fact(
            "kubelet shows",
            &format!("MountVolume.SetUp failed: rpc error: {:?}\n{}", status.code(), status.message()),
        )?;
        let mounted = mount::at(&carrier.target())?.is_some();
        self.transcript.claim(!mounted, "nothing was mounted")?;
        carrier.unpublish(&self.node).await?;
        Ok(status)
    }
}
