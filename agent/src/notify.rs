//! Tells a pod that its files have changed: an HTTP POST to a port of its own, which it asked for.
//!
//! The body names the generation and the files, never what is in them. The pod's address comes from the API server, by
//! the pod's uid; a pod on its node's network has none of its own and is not called. Changes that follow each other closely are one call,
//! a call that fails is tried again, and one that never arrives is told by an event.

mod post;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::post::post;
use crate::identity::Workload;
use crate::kubernetes::events::{Reason, Recorder};
use crate::kubernetes::pods::{PodError, Pods};
use crate::metrics::Metrics;
use crate::request::OnChange;
use crate::volume::VolumeId;

/// Changes within this are one call.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// How long one call may take, the answer's head included.
const LIMIT: Duration = Duration::from_secs(5);
/// Pauses before the tries after the first.
const PAUSES: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
];
/// Changes that wait to be looked at.
const QUEUE: usize = 1024;

/// A change that somebody asked to be told of.
#[derive(Debug, Clone)]
pub(crate) struct Notice {
    pub(crate) volume: VolumeId,
    pub(crate) workload: Workload,
    pub(crate) target: OnChange,
    /// The generation in use now.
    pub(crate) generation: String,
    /// Paths of files that came, went or have other contents.
    pub(crate) files: BTreeSet<String>,
}

enum Order {
    Tell(Box<Notice>),
    Forget(VolumeId),
}

/// Takes changes; never waits and never fails.
#[derive(Debug, Clone, Default)]
pub struct Notifier(Option<mpsc::Sender<Order>>);

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tell(notice) => write!(f, "Tell({})", notice.volume),
            Self::Forget(volume) => write!(f, "Forget({volume})"),
        }
    }
}

impl Notifier {
    /// One that calls nobody.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Whether anybody is called at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// One whose notices a test reads.
    #[cfg(test)]
    pub(crate) fn pair() -> (Self, impl FnMut() -> Option<Notice>) {
        let (order, mut orders) = mpsc::channel(QUEUE);
        let next = move || match orders.try_recv().ok()? {
            Order::Tell(notice) => Some(*notice),
            Order::Forget(_) => None,
        };
        (Self(Some(order)), next)
    }

    /// Tells the pod of a change.
    pub(crate) fn tell(&self, notice: Notice) {
        if let Some(orders) = &self.0
            && let Err(error) = orders.try_send(Order::Tell(Box::new(notice)))
        {
            warn!(%error, "a pod is not told that its files have changed: too many wait");
        }
    }

    /// The volume is gone, and so is whoever would be told.
    pub(crate) fn forget(&self, volume: &VolumeId) {
        if let Some(orders) = &self.0 {
            // Without it, the calls end when the API server has no such pod any more.
            orders.try_send(Order::Forget(volume.clone())).unwrap_or_default();
        }
    }
}

/// Makes the calls of one node.
#[derive(Debug)]
pub struct Notices {
    caller: Arc<Caller>,
    orders: mpsc::Receiver<Order>,
}

#[derive(Debug)]
struct Caller {
    pods: Pods,
    metrics: Arc<Metrics>,
    events: Recorder,
    /// Whether an address may be a pod's own.
    fit: fn(IpAddr) -> bool,
}

/// A call that is under way.
struct Pending {
    notice: Notice,
    task: AbortHandle,
}

/// Why a call did not arrive.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// Another try may do.
    #[error("{0}")]
    Again(String),
    /// None will.
    #[error("{0}")]
    Never(String),
    /// There is nobody any more.
    #[error("the pod is going")]
    Gone,
}

impl Notices {
    /// The caller, and what to tell it by.
    pub(crate) fn new(pods: Pods, metrics: Arc<Metrics>, events: Recorder) -> (Self, Notifier) {
        Self::calling(Caller { pods, metrics, events, fit: is_a_pods })
    }

    fn calling(caller: Caller) -> (Self, Notifier) {
        let (order, orders) = mpsc::channel(QUEUE);
        (Self { caller: Arc::new(caller), orders }, Notifier(Some(order)))
    }

    /// Calls until `shutdown`.
    pub async fn run(mut self, shutdown: &CancellationToken) {
        let mut tasks = JoinSet::new();
        let mut pending = HashMap::<VolumeId, Pending>::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = tasks.join_next_with_id(), if !tasks.is_empty() => {
                    let id: Id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    pending.retain(|_, call| call.task.id() != id);
                }
                order = self.orders.recv() => match order {
                    None => break,
                    Some(Order::Forget(volume)) => {
                        if let Some(call) = pending.remove(&volume) {
                            call.task.abort();
                        }
                    }
                    Some(Order::Tell(notice)) => {
                        let mut notice = *notice;
                        if let Some(before) = pending.remove(&notice.volume) {
                            before.task.abort();
                            notice.files.extend(before.notice.files);
                        }
                        let (caller, told) = (Arc::clone(&self.caller), notice.clone());
                        let task = tasks.spawn(async move { caller.tell(&told).await });
                        pending.insert(notice.volume.clone(), Pending { notice, task });
                    }
                },
            }
        }
        tasks.shutdown().await;
    }
}

impl Caller {
    async fn tell(&self, notice: &Notice) {
        let (pod, port) = (&notice.workload, notice.target.port);
        tokio::time::sleep(DEBOUNCE).await;
        let mut pauses = PAUSES.iter();
        let failed = loop {
            match self.call(notice).await {
                Ok(status) => {
                    info!(%pod, port, status = status.as_u16(), "the pod was told that its files have changed");
                    self.metrics.notified("ok");
                    return;
                }
                Err(Failed::Gone) => return,
                Err(failed @ Failed::Never(_)) => break failed,
                Err(failed @ Failed::Again(_)) => {
                    debug!(%pod, port, error = %failed, "the pod could not be told that its files have changed");
                    let Some(pause) = pauses.next() else { break failed };
                    tokio::time::sleep(*pause).await;
                }
            }
        };
        self.metrics.notified("failed");
        warn!(%pod, port, error = %failed, "the pod was not told that its files have changed");
        let message =
            format!("the files have changed, and port {port} could not be told (on-change): {failed}");
        self.events.tell(pod, Reason::NotTold, &message);
    }

    async fn call(&self, notice: &Notice) -> Result<StatusCode, Failed> {
        let pod = self.pods.read(&notice.workload).await.map_err(|error| match error {
            PodError::Gone { .. } | PodError::Another { .. } => Failed::Gone,
            PodError::Elsewhere { .. } | PodError::Forbidden { .. } => Failed::Never(error.to_string()),
            PodError::Api(_) => Failed::Again(error.to_string()),
        })?;
        if pod.metadata.deletion_timestamp.is_some() {
            return Err(Failed::Gone);
        }
        if pod.spec.host_network {
            let why = "the pod is on its node's network, where its address is not its own; watch the volume instead";
            return Err(Failed::Never(why.to_owned()));
        }
        let ip = pod.status.pod_ip.ok_or_else(|| Failed::Again("the pod has no address yet".to_owned()))?;
        if !(self.fit)(ip) {
            return Err(Failed::Never(format!("{ip} can't be a pod's own address")));
        }
        let address = SocketAddr::new(ip, notice.target.port.get());
        match tokio::time::timeout(LIMIT, post(address, notice)).await {
            Ok(Ok(status)) if status.is_success() => Ok(status),
            // A redirect is no success either: it would be followed to somebody else.
            Ok(Ok(status)) => Err(Failed::Again(format!("{address} answers {status}"))),
            Ok(Err(error)) => Err(Failed::Again(format!("{address}: {error}"))),
            Err(_) => Err(Failed::Again(format!("{address}: no answer within {} s", LIMIT.as_secs()))),
        }
    }
}

/// Whether an address may be a pod's own: not this machine's, nor one that reaches many or nobody.
fn is_a_pods(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let linked = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(linked || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

#[cfg(test)]
mod tests;
