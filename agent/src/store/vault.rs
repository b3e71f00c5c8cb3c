//! Vault and `OpenBao`, logged in to as the pod itself, so that the server's policy and its audit log name the workload.
//!
//! Plain reads of an identity share one token; a secret with a lease has a login of its own, which is revoked with it.
//! All requests of a store go over one connection to one of its servers; the exception is a login with the pod's
//! certificate, which is part of the connection's handshake.
//!
//! Nothing is kept on disk. An agent that is started anew logs in anew, and what was leased before ends by its TTL.

mod address;
mod answer;
mod client;
pub mod config;
mod document;
mod events;
pub mod explain;
mod kind;
mod learned;
mod lease;
mod login;
mod meters;
mod mount;
mod pki;
mod read;
mod reaper;
mod refusal;
mod role;
mod session;
#[cfg(test)]
mod tests;
mod token;
mod wanted;
mod wrapping;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::error::Error;
use crate::sources::{Ask, Mint, Stale};
use crate::spiffe::SpiffeId;

use super::allow::Rule;
use super::{Answer, Fetched, Fresh, Held};
use client::Client;
use config::{Namespace, Settings, VaultConfig};
use document::Versions;
use events::{Events, Watch};
use learned::Learned;
use lease::{Lease, Standing};
use login::Door;
pub use meters::Families;
use meters::Meters;
use mount::{Engine, Mounts};
use read::{Known, Outcome, Reading};
use reaper::{Reaper, Revocation};
use session::{Session, Sessions};
use wanted::{LeaseMode, Wanted};
use wrapping::Unwrapped;

/// How often sessions that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(15);

/// The store. Clones are the same store.
#[derive(Clone)]
pub struct VaultStore(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    door: Door,
    namespace: Namespace,
    overlap: Duration,
    allow: Option<Vec<Rule>>,
    sessions: Sessions,
    mounts: Mounts,
    /// Held by the one who asks what is mounted somewhere: others then know.
    mounting: tokio::sync::Mutex<()>,
    versions: Versions,
    /// Paths whose answers turned out to have a lease, or to have none, against what their mount suggested.
    learned: Learned,
    /// Whether the servers log in and read at once, and when they were asked.
    inline: tokio::sync::Mutex<Option<(bool, Instant)>>,
    reaper: Reaper,
    inbox: tokio::sync::Mutex<mpsc::UnboundedReceiver<Revocation>>,
    /// None: changes are not listened for.
    events: Option<Events>,
    meters: Meters,
}

/// What keeps an answer alive: the identity's session, and the lease if there is one.
#[derive(Clone)]
pub struct Holding {
    session: Arc<Session>,
    lease: Option<Arc<Lease>>,
    /// The plain secret as it was read last, for a look whether it is still the same.
    known: Option<Arc<Known>>,
    unwrapped: Option<Arc<Unwrapped>>,
    watch: Option<Arc<Watch>>,
}

impl Holding {
    /// Whether the server tells of changes, in words; none: it was not asked to.
    pub(super) fn told(&self) -> Option<String> {
        self.watch.as_ref().map(|watch| watch.told())
    }
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holding").field("leased", &self.lease.is_some()).finish_non_exhaustive()
    }
}

impl fmt::Debug for VaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultStore").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl VaultStore {
    /// Opens the store. Nobody is asked yet: a server that is down now must not keep the agent from starting.
    ///
    /// # Errors
    /// [`Error::Unusable`] when the configuration contradicts itself.
    pub fn open(name: &str, config: VaultConfig, clock: Clock, families: &Families) -> Result<Self, Error> {
        let store: Arc<str> = name.into();
        let settings =
            Settings::parse(config).map_err(|problem| Error::Unusable { store: name.to_owned(), problem })?;
        let client = Client::new(Arc::clone(&store), &settings, clock)?;
        let (reaper, inbox) = Reaper::new();
        let meters = families.of(name);
        Ok(Self(Arc::new(Inner {
            door: Door { client, login: settings.login, clock },
            namespace: settings.namespace,
            overlap: settings.overlap,
            allow: settings.allow,
            sessions: Sessions::new(reaper.clone(), clock),
            mounts: Mounts::default(),
            mounting: tokio::sync::Mutex::default(),
            versions: Versions::new(),
            learned: Learned::default(),
            inline: tokio::sync::Mutex::default(),
            reaper,
            inbox: tokio::sync::Mutex::new(inbox),
            events: settings.events.then(|| Events::new(meters.clone())),
            meters,
            name: store,
        })))
    }

    /// The secret that `ask` names, read as its caller. What is `held` from the last answer is kept alive or replaced.
    ///
    /// # Errors
    /// [`Error::Request`] for a path or option that cannot be, [`Error::LoginRefused`], [`Error::Denied`] for a read that the
    /// server's policy forbids, [`Error::NotFound`], [`Error::Unusable`] for an answer that cannot be used,
    /// [`Error::StoreUnavailable`] for servers that do not answer, and whatever minting a JWT-SVID may end in.
    pub async fn fetch<M: Mint>(
        &self,
        mint: &M,
        ask: Ask<'_>,
        held: &mut Option<Held>,
    ) -> Result<Answer, Error> {
        let store = &*self.0;
        let wanted = Wanted::parse(ask.source)?;
        let id = &ask.caller.identity.spiffe_id;
        store.allowed(id, &wanted)?;
        let mut holding = match held.take() {
            Some(Held::Vault(holding)) => holding,
            None => Holding {
                session: store.sessions.of(id),
                lease: None,
                known: None,
                unwrapped: None,
                watch: None,
            },
        };
        *held = Some(Held::Vault(holding.clone()));
        if let Some(lease) = &holding.lease {
            match lease.keep(&store.door).await? {
                Standing::Good(next) => {
                    return Ok(Answer::Kept(Fetched {
                        document: Arc::clone(&lease.document),
                        version: lease.version.clone(),
                        fresh: Fresh::AtMost(next),
                        request_id: None,
                    }));
                }
                Standing::Ending => {
                    tracing::info!(
                        store = &*store.name,
                        reference = wanted.reference,
                        "a leased credential is about to end; fetching another"
                    );
                }
                Standing::Gone(why) => {
                    tracing::warn!(
                        store = &*store.name,
                        reference = wanted.reference,
                        why,
                        "a leased credential is gone; fetching another"
                    );
                }
            }
        }
        let namespace = store.namespace.join(&wanted.namespace);
        let reading = Reading {
            store,
            mint,
            ask,
            wanted: &wanted,
            session: &holding.session,
            namespace: &namespace,
            known: holding.known.clone(),
        };
        let fetched = match reading.read().await? {
            Outcome::Apart => return Ok(Answer::Apart),
            Outcome::Unchanged(fetched, known) => {
                holding.known = Some(known);
                store.listen(ask, &wanted, &namespace, &mut holding);
                *held = Some(Held::Vault(holding));
                return Ok(Answer::Kept(fetched));
            }
            Outcome::Plain(fetched, known) => {
                holding.known = known;
                store.listen(ask, &wanted, &namespace, &mut holding);
                fetched
            }
            Outcome::Leased(fetched, lease) => {
                if let Some(old) = holding.lease.replace(lease) {
                    old.replaced();
                }
                fetched
            }
        };
        let fetched = store.unwrapped(&wanted, &namespace, fetched, &mut holding).await?;
        *held = Some(Held::Vault(holding));
        Ok(Answer::Secret(fetched))
    }

    /// Gives back what is not used any more, until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let store = &*self.0;
        store.reaper.ends_with(&shutdown);
        let mut inbox = store.inbox.lock().await;
        let sweeping = async {
            loop {
                store.meters.tokens.set(i64::try_from(store.sessions.sweep()).unwrap_or(i64::MAX));
                tokio::select! {
                    () = tokio::time::sleep(SWEEP) => {}
                    () = shutdown.cancelled() => break,
                }
            }
        };
        let reaping = reaper::run(&store.door, &store.name, &store.meters, &mut inbox, &shutdown);
        let listening = async {
            if let Some(events) = &store.events {
                events.run(&store.door, &store.name, &shutdown).await;
            }
        };
        tokio::join!(sweeping, reaping, listening);
    }

    /// The next secret that the server reported as changed; never, where it is not listened to.
    pub async fn stale(&self) -> Stale {
        match &self.0.events {
            Some(events) => events.stale().await,
            None => std::future::pending().await,
        }
    }
}

impl Inner {
    fn allowed(&self, id: &SpiffeId, wanted: &Wanted) -> Result<(), Error> {
        let Some(rules) = &self.allow else { return Ok(()) };
        if rules.iter().any(|rule| rule.permits(id, wanted.path.as_str())) {
            return Ok(());
        }
        Err(Error::Denied {
            reference: wanted.reference.clone(),
            problem: format!(
                "{id} may not read it; the store {} would allow it with the rule {{ id: \"{id}\", paths: [\"{}\"] }}",
                self.name, wanted.path
            ),
        })
    }

    /// Sees that changes of a key-value secret are heard of from now on, where that is configured.
    fn listen(&self, ask: Ask<'_>, wanted: &Wanted, namespace: &Namespace, holding: &mut Holding) {
        let Some(events) = &self.events else { return };
        let (path, session) = (&wanted.path, &holding.session);
        let mount = self.mounts.of(namespace, path, self.door.clock.now());
        if !mount.is_some_and(|mount| matches!(mount.engine, Engine::KvV1 | Engine::KvV2)) {
            return;
        }
        if !holding.watch.as_ref().is_some_and(|watch| watch.is(session, path)) {
            let id = &ask.caller.identity.spiffe_id;
            holding.watch = Some(Arc::new(events.watch(id, namespace, session, path, ask.source)));
        }
    }

    /// Whether the path's answers have a lease, if that is known by experience.
    fn learned(&self, namespace: &Namespace, wanted: &Wanted) -> Option<bool> {
        if wanted.lease != LeaseMode::Auto {
            return None;
        }
        self.learned.of(namespace, &wanted.path)
    }

    fn learn(&self, namespace: &Namespace, wanted: &Wanted, leased: bool) {
        tracing::info!(
            store = &*self.name,
            reference = wanted.reference,
            leased,
            "whether this secret has a lease was not as its mount suggested"
        );
        self.learned.learn(namespace, &wanted.path, leased, self.door.clock.now());
    }

    /// The document, unwrapped if that was asked for; what was unwrapped before is kept as long as its token is there.
    async fn unwrapped(
        &self,
        wanted: &Wanted,
        namespace: &Namespace,
        fetched: Fetched,
        holding: &mut Holding,
    ) -> Result<Fetched, Error> {
        let Some(unwrap) = &wanted.unwrap else { return Ok(fetched) };
        let known = holding.unwrapped.take().filter(|known| known.of == fetched.version);
        let unwrapped = if let Some(known) = known {
            known
        } else {
            let node = wrapping::unwrap(&self.door, namespace, wanted, unwrap, &fetched.document).await?;
            Arc::new(Unwrapped { of: fetched.version.clone(), document: Arc::new(node) })
        };
        let document = Arc::clone(&unwrapped.document);
        holding.unwrapped = Some(unwrapped);
        Ok(Fetched { document, ..fetched })
    }
}
