//! What driver and signaller say to each other: a connection for each order, one JSON object each way.
//!
//! The two are in different pods and may differ by one version: fields are only ever added.

use std::io;
use std::path::Path;
use std::time::Duration;

use countersign_proto::signal::SignalTarget;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::volume::VolumeId;

/// File name of the signaller's socket in its directory.
pub const SOCKET: &str = "signals.sock";
/// Most bytes of a message.
pub(super) const LONGEST: u64 = 16 * 1024;
/// Time for an order to be carried out; the signaller gives itself half of it.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest uid of a pod: of a name in Kubernetes.
const LONGEST_UID: usize = 253;

/// A pod's uid, as kubelet puts it into the names of cgroups.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodUid(Box<str>);

impl PodUid {
    /// Reads a uid: letters, digits and `-`. The API server makes UUIDs, kubelet for its static pods 32 digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let legal = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (legal && (1..=LONGEST_UID).contains(&text.len())).then(|| Self(text.into()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whom to send what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The pod, as kubelet named it to the driver.
    pub pod: PodUid,
    /// The volume whose files have changed: containers that do not see it are not told.
    pub volume: VolumeId,
    /// What the pod asked for.
    pub target: SignalTarget,
}

#[derive(Serialize, Deserialize)]
struct Written {
    pod: String,
    volume: String,
    on_change: String,
}

impl Order {
    /// Reads an order: what is not allowed is not sent, whoever asks for it.
    pub(super) fn read(text: &str) -> Result<Self, &'static str> {
        let written: Written = serde_json::from_str(text).map_err(|_| "it is not the JSON of an order")?;
        Ok(Self {
            pod: PodUid::parse(&written.pod).ok_or("it names no pod")?,
            volume: VolumeId::parse(&written.volume).ok_or("it names no volume")?,
            target: written.on_change.parse().map_err(|_| "it names no signal that is sent")?,
        })
    }

    pub(super) fn written(&self) -> Vec<u8> {
        let (pod, volume) = (self.pod.as_str().to_owned(), self.volume.to_string());
        let written = Written { pod, volume, on_change: self.target.to_string() };
        // Plain fields always have a JSON form.
        serde_json::to_vec(&written).unwrap_or_default()
    }
}

/// What became of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How many processes got the signal.
    #[serde(default)]
    pub processes: u32,
    /// Why none got it. No problem and no process: no container of the pod that sees the volume runs.
    #[serde(default)]
    pub problem: Option<String>,
}

impl Outcome {
    /// Nobody was signalled.
    pub(crate) fn failed(problem: impl Into<String>) -> Self {
        Self { processes: 0, problem: Some(problem.into()) }
    }

    pub(super) fn written(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Has the signaller whose sockets are in `directory` carry out an order.
pub async fn ask(directory: &Path, order: &Order) -> Outcome {
    let asked = async {
        let mut stream = UnixStream::connect(directory.join(SOCKET)).await?;
        // It carries the orders of nobody but its own user; nor is it believed otherwise.
        if stream.peer_cred()?.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("somebody else serves its socket"));
        }
        stream.write_all(&order.written()).await?;
        stream.shutdown().await?;
        let mut text = String::new();
        stream.take(LONGEST).read_to_string(&mut text).await?;
        serde_json::from_str(&text).map_err(|_| io::Error::other("its answer is no JSON of an outcome"))
    };
    match timeout(LIMIT, asked).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error))
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            Outcome::failed("the signaller of this node does not run (DaemonSet countersign-signaller)")
        }
        Ok(Err(error)) => Outcome::failed(format!("the signaller of this node: {error}")),
        Err(_) => {
            Outcome::failed(format!("the signaller of this node did not answer within {} s", LIMIT.as_secs()))
        }
    }
}
