//! Tells a pod that its files have changed, as it asked for: by an HTTP POST to a port of its own, or by a signal,
//! which is the driver's to have sent.
//!
//! Changes that follow each other closely are one call, a call that fails is tried again, and one that never arrives is
//! told by an event.

mod post;
mod signals;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::post::Posts;
pub use self::signals::Signals;
use crate::identity::Workload;
use crate::kubernetes::events::{Reason, Recorder};
use crate::metrics::Metrics;
use crate::request::OnChange;
use crate::volume::VolumeId;

/// Changes within this are one call.
const DEBOUNCE: Duration = Duration::from_millis(500);
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
    /// None: pods are not called.
    posts: Option<Posts>,
    signals: Signals,
    metrics: Arc<Metrics>,
    events: Recorder,
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
    pub(crate) fn new(
        posts: Option<Posts>,
        signals: Signals,
        metrics: Arc<Metrics>,
        events: Recorder,
    ) -> (Self, Notifier) {
        Self::calling(Caller { posts, signals, metrics, events })
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

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// It arrived: this was answered.
    Answered(String),
    /// There is nobody yet: a program that starts now reads what is new.
    Nobody,
}

impl Caller {
    async fn tell(&self, notice: &Notice) {
        let (pod, target) = (&notice.workload, &notice.target);
        tokio::time::sleep(DEBOUNCE).await;
        let mut pauses = PAUSES.iter();
        let failed = loop {
            match self.call(notice).await {
                Ok(Told::Answered(answer)) => {
                    info!(%pod, %target, answer, "the pod was told that its files have changed");
                    self.metrics.notified("ok");
                    return;
                }
                Ok(Told::Nobody) => {
                    info!(%pod, %target, "nobody was told that files have changed: no container that mounts them runs");
                    self.metrics.notified("nobody");
                    return;
                }
                Err(Failed::Gone) => return,
                Err(failed @ Failed::Never(_)) => break failed,
                Err(failed @ Failed::Again(_)) => {
                    debug!(%pod, %target, error = %failed, "the pod could not be told that its files have changed");
                    let Some(pause) = pauses.next() else { break failed };
                    tokio::time::sleep(*pause).await;
                }
            }
        };
        self.metrics.notified("failed");
        warn!(%pod, %target, error = %failed, "the pod was not told that its files have changed");
        let what = match target {
            OnChange::Post(post) => format!("port {} could not be told (on-change): {failed}", post.port),
            OnChange::Signal(target) => format!("{} could not be sent (on-change): {failed}", target.signal),
        };
        let message = format!("the files have changed, and {what}");
        self.events.tell(pod, Reason::NotTold, &message);
    }

    async fn call(&self, notice: &Notice) -> Result<Told, Failed> {
        match (&notice.target, &self.posts) {
            (OnChange::Post(target), Some(posts)) => posts.call(notice, target).await,
            (OnChange::Post(_), None) => Err(Failed::Never(POSTS_OFF.to_owned())),
            (OnChange::Signal(_), _) => self.signals.ask(&notice.volume).await,
        }
    }
}

/// Why no pod is called here, and what to do about it.
pub const POSTS_OFF: &str = "pods are not called in this cluster; watch the volume with inotify, or have \
     onChange.enabled set in Countersign's values";
/// Why no signal is sent here, and what to do about it.
pub const SIGNALS_OFF: &str = "signals are not sent in this cluster; watch the volume with inotify, or have \
     signals.enabled set in Countersign's values";

#[cfg(test)]
mod tests;
