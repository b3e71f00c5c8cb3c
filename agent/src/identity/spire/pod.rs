//! One pod's standing with SPIRE, and the stream that keeps it up to date.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use rand::Rng as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::answer::{Trouble, refused, unavailable};
use super::api::Api;
use super::backoff::Backoff;
use super::material::{Unusable, Update, same};
use crate::Error;
use crate::clock::Clock;
use crate::identity::{Push, Workload, X509Svid};
use crate::spiffe::TrustDomain;

/// A pod that SPIRE does not see is asked for this often, and for this long before it is asked for more rarely:
/// SPIRE's picture of kubelet's pods is up to half a second old.
const UNSEEN: (Duration, u32) = (Duration::from_millis(50), 20);
/// First and longest pause after other trouble.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A denial is looked at again after this, at most.
const DENIED: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(60));
/// How long the first word may take: SPIRE may have to sign first, for many pods at once.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// An empty set counts only when it has held for this long: a SPIRE agent that was attested anew has nothing to say
/// for some seconds, and means nothing by it.
const EMPTY: Duration = Duration::from_secs(15);
/// A stream is opened anew after this: SPIRE looks at the pod and at our right to ask for it only at the beginning.
const AGE: Duration = Duration::from_secs(900);
/// How long a pod that is about to start waits for an entry, and for anything else.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));

/// How a pod stands with SPIRE.
#[derive(Debug, Clone)]
pub(super) enum Standing {
    /// Nothing was said yet.
    Asked,
    /// There is no SVID, and why; more time may help.
    Waiting { error: Error, patience: Duration },
    /// The last good SVID, perhaps with the trouble of getting another.
    Held { svid: Arc<X509Svid>, trouble: Option<Error> },
    /// SPIRE has said that there is none for us.
    Denied(Error),
}

/// A pod that somebody wants to know about. Its stream ends when the last of them is gone.
pub(crate) struct Pod {
    standing: watch::Receiver<Standing>,
    began: Instant,
    _ends: DropGuard,
}

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pod")
    }
}

impl Pod {
    /// The pod's SVID, waited for while it has just been asked for; and the trouble of renewing it, if any.
    pub(super) async fn svid(&self, clock: &Clock) -> Result<(Arc<X509Svid>, Option<Error>), Error> {
        let mut standing = self.standing.clone();
        loop {
            let (error, patience) = match standing.borrow_and_update().clone() {
                Standing::Held { svid, trouble } if svid.not_after > clock.wall() => {
                    return Ok((svid, trouble));
                }
                Standing::Held { trouble, .. } => {
                    let ended = || unavailable("its SVID has ended, and SPIRE has sent no other");
                    (trouble.unwrap_or_else(ended), Duration::ZERO)
                }
                Standing::Denied(error) => return Err(error),
                Standing::Asked => (unavailable("SPIRE has not answered yet"), FIRST_WORD),
                Standing::Waiting { error, patience } => (error, patience),
            };
            match timeout_at(self.began + patience, standing.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::ShuttingDown),
                Err(_) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
impl Pod {
    /// The first trouble that is met.
    pub(super) async fn trouble(&self) -> Error {
        let mut standing = self.standing.clone();
        let said = standing.wait_for(|standing| !matches!(standing, Standing::Asked)).await.unwrap();
        match said.clone() {
            Standing::Waiting { error, .. } | Standing::Denied(error) => error,
            other @ (Standing::Asked | Standing::Held { .. }) => panic!("{other:?}"),
        }
    }
}

/// What all watchers share.
#[derive(Debug)]
pub(super) struct Office {
    pub(super) api: Api,
    pub(super) domain: TrustDomain,
    pub(super) hint: Option<String>,
    pub(super) clock: Clock,
    pub(super) pushes: mpsc::Sender<Push>,
}

/// Follows what SPIRE says of one pod.
pub(super) struct Watcher {
    office: Arc<Office>,
    workload: Workload,
    standing: watch::Sender<Standing>,
    ended: CancellationToken,
}

/// A pod and its watcher, who has not begun yet.
pub(super) fn pair(office: &Arc<Office>, workload: &Workload) -> (Pod, Watcher) {
    let (sender, receiver) = watch::channel(Standing::Asked);
    let ended = CancellationToken::new();
    let pod = Pod { standing: receiver, began: office.clock.now(), _ends: ended.clone().drop_guard() };
    let office = Arc::clone(office);
    (pod, Watcher { office, workload: workload.clone(), standing: sender, ended })
}

impl Watcher {
    /// Until nobody wants to know any more.
    pub(super) async fn follow(self) {
        self.ended.clone().run_until_cancelled_owned(self.follow_on()).await;
    }

    async fn follow_on(&self) {
        let (mut backoff, mut denials, mut unseen) = (Backoff::new(PAUSE), Backoff::new(DENIED), 0);
        loop {
            let before = self.office.clock.now();
            let Err(trouble) = self.one_stream().await else {
                debug!(pod = %self.workload, "asking SPIRE anew, to see whether it still vouches for the pod");
                continue;
            };
            if self.office.clock.now() - before > PAUSE.1 {
                (backoff, denials, unseen) = (Backoff::new(PAUSE), Backoff::new(DENIED), 0);
            }
            let pause = match &trouble {
                Trouble::Unseen(_) if unseen < UNSEEN.1 => {
                    unseen += 1;
                    UNSEEN.0
                }
                Trouble::Unseen(_) | Trouble::Down(_) => backoff.next(),
                Trouble::Denied(_) | Trouble::NoEntry(_) => denials.next(),
            };
            self.note(&trouble).await;
            sleep(pause).await;
        }
    }

    /// Follows one stream until it has grown old.
    async fn one_stream(&self) -> Result<(), Trouble> {
        let office = &*self.office;
        let silent = || {
            Trouble::Down(unavailable(format!(
                "SPIRE has said nothing of pod {} within {} s",
                self.workload,
                FIRST_WORD.as_secs()
            )))
        };
        let meaning = |status| office.api.meaning(&status, &self.workload);
        let subscribed = timeout(FIRST_WORD, office.api.subscribe(&self.workload)).await;
        let mut stream = subscribed.map_err(|_| silent())??;
        let old = office.clock.now() + AGE.mul_f64(rand::rng().random_range(0.8..=1.2));
        let mut first = Some(office.clock.now() + FIRST_WORD);
        let mut lacking: Option<(Instant, Trouble)> = None;
        loop {
            tokio::select! {
                message = stream.next() => {
                    first = None;
                    match message {
                        Some(Ok(update)) => {
                            let believed = lacking.map_or_else(|| office.clock.now() + EMPTY, |(when, _)| when);
                            lacking = self.take(update).await.map(|trouble| (believed, trouble));
                        }
                        Some(Err(status)) => return Err(meaning(status)),
                        None => return Err(Trouble::Down(unavailable("SPIRE ended the pod's stream"))),
                    }
                }
                () = sleep_until(first.unwrap_or(old)), if first.is_some() => return Err(silent()),
                () = sleep_until(lacking.as_ref().map_or(old, |(when, _)| *when)), if lacking.is_some() => {
                    if let Some((_, trouble)) = lacking.take() {
                        self.note(&trouble).await;
                    }
                }
                () = sleep_until(old), if lacking.is_none() => return Ok(()),
            }
        }
    }

    /// Takes in a message; what is to be believed once it has held for a while, if it has no SVID for us.
    async fn take(&self, update: Update) -> Option<Trouble> {
        let office = &*self.office;
        let hint = self.workload.hint.as_deref().or(office.hint.as_deref());
        match update.read(&office.domain, hint, office.clock.wall()) {
            Ok(Some(svid)) => {
                self.hold(svid).await;
                None
            }
            Ok(None) => Some(self.lack(office.api.no_entry(&self.workload)).await),
            // An entry that another has been left of is as gone as one that was the last.
            Err(lacking @ Unusable::Hint { .. }) => {
                Some(self.lack(Trouble::NoEntry(format!("pod {}: {lacking}", self.workload))).await)
            }
            Err(unusable @ Unusable::Svid(_)) => {
                warn!(pod = %self.workload, problem = %unusable, "what SPIRE sent is not used");
                self.note(&Trouble::Down(refused(unusable.to_string()))).await;
                None
            }
        }
    }

    /// What is held stays until there has been no SVID for a while; who waits is told why at once.
    async fn lack(&self, trouble: Trouble) -> Trouble {
        if self.held().is_none() {
            self.note(&trouble).await;
        }
        trouble
    }

    fn held(&self) -> Option<Arc<X509Svid>> {
        match &*self.standing.borrow() {
            Standing::Held { svid, .. } => Some(Arc::clone(svid)),
            Standing::Asked | Standing::Waiting { .. } | Standing::Denied(_) => None,
        }
    }

    async fn hold(&self, svid: X509Svid) {
        // After a reconnect the same comes again: the pointer stays, so that nobody sees a change.
        let known = self.held().filter(|held| same(held, &svid));
        let news = known.is_none();
        let svid = known.unwrap_or_else(|| Arc::new(svid));
        self.standing.send_replace(Standing::Held { svid: Arc::clone(&svid), trouble: None });
        if news {
            self.push(Some(svid)).await;
        }
    }

    /// What is held stays, unless SPIRE takes it back. Without it, the trouble is what the pod waits for.
    async fn note(&self, trouble: &Trouble) {
        let error = trouble.error();
        let (next, withdrawn) = match (self.held(), trouble) {
            (Some(svid), Trouble::Unseen(_) | Trouble::Down(_)) => {
                (Standing::Held { svid, trouble: Some(error) }, false)
            }
            (Some(_), Trouble::NoEntry(problem) | Trouble::Denied(problem)) => {
                info!(pod = %self.workload, reason = problem, "SPIRE has withdrawn the pod's identity");
                (Standing::Denied(Error::IdentityWithdrawn { problem: problem.clone() }), true)
            }
            (None, Trouble::Denied(_)) => (Standing::Denied(error), false),
            (None, Trouble::NoEntry(_)) => (Standing::Waiting { error, patience: PATIENCE.0 }, false),
            (None, Trouble::Unseen(_) | Trouble::Down(_)) => {
                (Standing::Waiting { error, patience: PATIENCE.1 }, false)
            }
        };
        self.standing.send_replace(next);
        if withdrawn {
            self.push(None).await;
        }
    }

    async fn push(&self, svid: Option<Arc<X509Svid>>) {
        let push = Push { workload: self.workload.clone(), svid };
        // Nobody to tell: the agent is ending.
        self.office.pushes.send(push).await.unwrap_or_default();
    }
}
