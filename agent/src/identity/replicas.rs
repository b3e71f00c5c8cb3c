//! The issuer's replicas: all addresses behind its name, each with a connection of its own, the good ones first.
//!
//! A call goes to one replica. If that refuses, breaks off or can't vouch for itself, the next one is asked at once;
//! if it just does not answer, the next one is asked beside it after a while, and the first answer counts. Asking
//! twice does no harm: each answer is a certificate for the same key. Where one was reached until now, a call that finds
//! none goes on looking for a while: the last may have gone before its successor's address is known.

mod address;
mod known;
mod trouble;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use address::NoReplica;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use known::{Known, Replica};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;
use trouble::{Trouble, cause, describe, may_differ};

pub use known::Standing;
pub(crate) use trouble::Unanswered;

use crate::clock::Clock;
use crate::identity::Roots;
use crate::identity::channel::Dialer;
use crate::identity::trust::Trust;

/// How long the answer to one call may take, connecting included.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// How long one replica is waited for before another is asked beside it. More than a review at the API server takes
/// on a good day.
const HEDGE: Duration = Duration::from_millis(1500);
/// How long the addresses of a name are believed.
const RESOLVED: Duration = Duration::from_secs(30);
/// A replica that failed is not asked first again for this long.
const COOL: Duration = Duration::from_secs(30);
/// How long a call goes on looking for a replica where one was reached until now: names lag behind replicas that come
/// and go, by 5 s where a cluster's resolver keeps answers for that long. Shorter than [`DEADLINE`], so that the cause is told.
const PATIENCE: Duration = Duration::from_secs(6);
/// The pause between two such looks. Whoever looks at the same time as others shares theirs.
const LOOK: Duration = Duration::from_millis(250);
/// The first and the longest pause between two tries to reach a replica at all.
const PROBE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Hands out connections to replicas, and remembers which are good.
pub(crate) struct Replicas {
    /// `HOST:PORT`, or several.
    address: String,
    trust: Trust,
    clock: Clock,
    known: Mutex<Option<Known>>,
    /// What came of the last try to reach any.
    reached: watch::Sender<Result<(), String>>,
    /// How the known ones stand, for whoever may not wait for a lookup.
    standing: watch::Sender<Standing>,
}

impl Replicas {
    pub(crate) fn new(address: String, trust: Trust, clock: Clock) -> Self {
        let reached = watch::Sender::new(Err("not tried yet".to_owned()));
        let standing = watch::Sender::default();
        Self { address, trust, clock, known: Mutex::new(None), reached, standing }
    }

    /// Keeps the roots up to date and, until one was, tries to reach a replica; until `shutdown`.
    pub(crate) async fn run(&self, shutdown: &CancellationToken) {
        let probing = async {
            let mut reached = self.reached.subscribe();
            let mut pause = PROBE.0;
            loop {
                if reached.borrow_and_update().is_ok() {
                    pause = PROBE.0;
                    // The sender is ours.
                    reached.changed().await.unwrap_or_default();
                    continue;
                }
                self.probe().await;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PROBE.1);
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = probing => {}
            () = self.trust.run(shutdown) => {}
        }
    }

    /// The roots as they change; nothing where they are in a file.
    pub(crate) fn roots(&self) -> Option<watch::Receiver<Roots>> {
        self.trust.roots()
    }

    /// Whether a replica was reached when one was last needed; else why not.
    pub(crate) fn reached(&self) -> Result<(), String> {
        self.reached.borrow().clone()
    }

    /// How the replicas stand that are known.
    pub(crate) fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    /// Connects to any replica, and says so or why not in [`Self::reached`].
    async fn probe(&self) {
        let tried = async {
            let candidates = self.candidates().await.map_err(|error| error.to_string())?;
            let Some(dialer) = self.known.lock().await.as_ref().map(|known| known.dialer.clone()) else {
                return Err("no roots are known".to_owned());
            };
            let mut troubles = Vec::new();
            for replica in candidates {
                match dialer.dial(replica.address).await {
                    Ok(_) => {
                        self.mark(&[replica.address], true).await;
                        return Ok(());
                    }
                    Err(error) => {
                        self.mark(&[replica.address], false).await;
                        troubles.push(Trouble {
                            address: replica.address,
                            problem: cause(&error),
                            answered: false,
                        });
                    }
                }
            }
            self.renew().await;
            Err(describe(&self.address, &troubles))
        };
        let result = match tokio::time::timeout(DEADLINE, tried).await {
            Ok(result) => result,
            Err(_) => Err(self.silent()),
        };
        self.note(result);
    }

    /// Asks one replica after the other, as the room's words say, by `ask`.
    pub(crate) async fn call<T, F>(&self, ask: impl Fn(Channel) -> F) -> Result<T, Unanswered>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let patience = if self.reached().is_ok() { PATIENCE } else { Duration::ZERO };
        let began = self.clock.now();
        let asking = async {
            let mut round = self.round(&ask).await?;
            // Perhaps they have moved, or show certificates by a root that is newer than our bundle.
            if !matches!(round, Round::Answer(_)) && self.renew().await {
                round = self.round(&ask).await?;
            }
            loop {
                let why = match round {
                    Round::Answer(answer) => return Ok(answer),
                    Round::Nobody(troubles) => {
                        let problem = describe(&self.address, &troubles);
                        if troubles.iter().any(|trouble| trouble.answered) {
                            return Err(Unanswered::Unable(problem));
                        }
                        problem
                    }
                    Round::Nowhere(why) => why.to_string(),
                };
                if self.clock.now().duration_since(began) >= patience {
                    return Err(Unanswered::Unreached(why));
                }
                tokio::time::sleep(LOOK).await;
                self.renew().await;
                round = self.round(&ask).await?;
            }
        };
        let result = match tokio::time::timeout(DEADLINE, asking).await {
            Ok(result) => result,
            Err(_) => Err(Unanswered::Unreached(self.silent())),
        };
        self.note(match &result {
            Ok(_) | Err(Unanswered::Refused(_) | Unanswered::Unable(_)) => Ok(()),
            Err(Unanswered::Unreached(problem)) => Err(problem.clone()),
        });
        result
    }

    /// Every replica once at most.
    async fn round<T, F>(&self, ask: &impl Fn(Channel) -> F) -> Result<Round<T>, Unanswered>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut waiting = match self.candidates().await {
            Ok(candidates) => candidates.into_iter(),
            Err(why) => return Ok(Round::Nowhere(why)),
        };
        let mut asked = FuturesUnordered::new();
        let mut silent = Vec::new();
        let mut troubles = Vec::new();
        let mut next = true;
        loop {
            if std::mem::take(&mut next)
                && let Some(Replica { address, channel, .. }) = waiting.next()
            {
                silent.push(address);
                let answer = ask(channel);
                asked.push(async move { (address, answer.await) });
            }
            let (address, answer) = tokio::select! {
                answered = asked.next() => match answered {
                    None => return Ok(Round::Nobody(troubles)),
                    Some(answered) => answered,
                },
                () = tokio::time::sleep(HEDGE), if waiting.len() > 0 => {
                    next = true;
                    continue;
                }
            };
            silent.retain(|one| *one != address);
            match answer {
                Err(status) if may_differ(&status) => {
                    self.mark(&[address], false).await;
                    troubles.push(Trouble::of(address, &status));
                    next = true;
                }
                answer => {
                    // Those that were asked before and say nothing are not asked first again.
                    self.mark(&silent, false).await;
                    self.mark(&[address], true).await;
                    return answer.map(Round::Answer).map_err(Unanswered::Refused);
                }
            }
        }
    }

    /// The replicas in the order they should be asked.
    async fn candidates(&self) -> Result<Vec<Replica>, NoReplica> {
        let bundle = self.trust.current().await.map_err(NoReplica::Trust)?;
        let mut known = self.known.lock().await;
        let now = self.clock.now();
        let stale = known.as_ref().is_none_or(|known| now.duration_since(known.resolved_at) >= RESOLVED);
        let changed = known.as_ref().is_none_or(|known| !known.bundle.same(&bundle));
        if changed {
            let dialer = Dialer::new(bundle.roots.clone(), self.clock).map_err(NoReplica::Tls)?;
            let (resolved_at, replicas) =
                known.take().map_or((now, Vec::new()), |known| (known.resolved_at, known.replicas));
            // Calls under way go on over the connections they have.
            let again = |Replica { address, answered, .. }: Replica| Replica {
                answered,
                ..Replica::new(address, &dialer, now)
            };
            let replicas = replicas.into_iter().map(again).collect();
            *known = Some(Known { bundle, dialer, resolved_at, replicas });
        }
        let Some(known) = known.as_mut() else { return Ok(Vec::new()) };
        if stale || known.replicas.is_empty() {
            known.resolve(&self.address, self.clock.now()).await?;
        }
        for replica in &mut known.replicas {
            replica.renewed(&known.dialer, now);
        }
        self.standing.send_replace(known.standing());
        let mut candidates = known.replicas.clone();
        // A stable sort: among the good ones, the order that was drawn by lot.
        candidates.sort_by_key(|replica| {
            replica.failed_at.filter(|at| self.clock.now().duration_since(*at) < COOL)
        });
        Ok(candidates)
    }

    /// Looks for newer roots and addresses; says whether there are any.
    async fn renew(&self) -> bool {
        self.trust.look_again().await;
        let Ok(bundle) = self.trust.current().await else { return false };
        let mut known = self.known.lock().await;
        let Some(known) = known.as_mut() else { return true };
        let before: Vec<_> = known.replicas.iter().map(|replica| replica.address).collect();
        let now = self.clock.now();
        if now.duration_since(known.resolved_at) >= LOOK && known.resolve(&self.address, now).await.is_err() {
            return false;
        }
        self.standing.send_replace(known.standing());
        let moved = known.replicas.iter().any(|replica| !before.contains(&replica.address));
        moved || !known.bundle.same(&bundle)
    }

    async fn mark(&self, addresses: &[SocketAddr], good: bool) {
        if let Some(known) = &mut *self.known.lock().await {
            for replica in known.replicas.iter_mut().filter(|one| addresses.contains(&one.address)) {
                replica.failed_at = (!good).then(|| self.clock.now());
                replica.answered = Some(good);
            }
            self.standing.send_replace(known.standing());
        }
    }

    /// The time of all connections is over.
    #[cfg(test)]
    pub(crate) async fn age(&self) {
        for replica in self.known.lock().await.iter_mut().flat_map(|known| &mut known.replicas) {
            replica.until = self.clock.now();
        }
    }

    fn note(&self, result: Result<(), String>) {
        self.reached.send_if_modified(|reached| {
            let news = *reached != result;
            match &result {
                Ok(()) if news => tracing::info!(address = self.address, "the issuer is reached"),
                Err(problem) if news => tracing::warn!(%problem, "the issuer is not reached"),
                Ok(()) | Err(_) => {}
            }
            *reached = result;
            news
        });
    }

    fn silent(&self) -> String {
        format!("the issuer at {} did not answer within {} s", self.address, DEADLINE.as_secs())
    }
}

enum Round<T> {
    Answer(T),
    Nobody(Vec<Trouble>),
    /// There was nobody to ask.
    Nowhere(NoReplica),
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replicas({}, {:?})", self.address, self.trust)
    }
}

#[cfg(test)]
mod tests;
