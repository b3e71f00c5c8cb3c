//! Identities from SPIRE: it vouches for the pod, signs, and renews; we follow.
//!
//! Every pod has a stream of its own over one connection, from the moment its first volume is published until its last
//! one is gone. What the streams say is at hand when a turn asks, and a change wakes the pod's volumes.

mod answer;
mod api;
mod backoff;
mod broker;
mod delegated;
mod following;
mod keys;
mod material;
mod own;
mod pod;
pub mod socket;
mod tls;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::answer::{refused, unavailable};
use self::api::{Api, Either};
use self::broker::Broker;
use self::delegated::Delegated;
use self::own::Own;
pub(crate) use self::pod::Pod;
use self::pod::{Office, Watcher, pair};
pub use self::socket::Socket;
use crate::Error;
use crate::clock::Clock;
use crate::identity::renewal::renew_at;
use crate::identity::svid::verify_jwt;
use crate::identity::{Identity, JwtSvid, Push, Workload};
use crate::kubernetes::pods::Pods;
use crate::kubernetes::{self, Caller, Server};
use crate::spiffe::TrustDomain;

/// How long a JWT-SVID may take.
const JWT_LIMIT: Duration = Duration::from_secs(10);
/// Changes that may wait for the keeper; whoever brings more waits too.
const PUSHES: usize = 64;

/// Where SPIRE's Broker API is.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// The Workload API's socket: from there we have our own SVID.
    pub workload_socket: Socket,
    /// The Broker API's socket.
    pub broker_socket: Socket,
}

/// Where SPIRE's Delegated Identity API is, and where pods are read.
#[derive(Debug, Clone)]
pub struct DelegatedConfig {
    /// The admin socket.
    pub admin_socket: Socket,
    /// The API server, whose word on a pod makes its selectors.
    pub server: Server,
    /// This node, as its Node object is called: no other node's pod is vouched for.
    pub node: String,
}

/// Which of SPIRE's ways is used.
#[derive(Debug, Clone)]
pub enum WayConfig {
    /// The Broker API.
    Broker(BrokerConfig),
    /// The Delegated Identity API.
    Delegated(DelegatedConfig),
    /// The first where SPIRE has it, else the second.
    Either(BrokerConfig, DelegatedConfig),
}

/// What has to be known of SPIRE.
#[derive(Debug, Clone)]
pub struct Config {
    /// How it is asked.
    pub way: WayConfig,
    /// The trust domain whose SVIDs are accepted, and whose SPIRE agent is talked to.
    pub trust_domain: TrustDomain,
    /// Which of several SVIDs of a pod is used; none: SPIRE's first.
    pub hint: Option<String>,
    /// Time.
    pub clock: Clock,
}

/// Identities from the SPIRE agent of this node.
pub struct Spire {
    office: Arc<Office>,
    pods: Mutex<HashMap<Workload, Weak<Pod>>>,
    births: mpsc::UnboundedSender<Watcher>,
    born: AsyncMutex<mpsc::UnboundedReceiver<Watcher>>,
    pushed: AsyncMutex<mpsc::Receiver<Push>>,
}

impl fmt::Debug for Spire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spire").field("office", &self.office).finish_non_exhaustive()
    }
}

impl Spire {
    /// Identities from SPIRE. It connects when [`Spire::run`] does.
    #[must_use]
    pub fn open(config: Config) -> Self {
        let Config { way, trust_domain, hint, clock } = config;
        let broker = |config: BrokerConfig| {
            let own = Arc::new(Own::new(config.workload_socket, trust_domain.clone(), clock));
            Broker::new(&config.broker_socket, own)
        };
        let delegated = |config: DelegatedConfig| {
            let pods =
                Pods::new(Arc::new(kubernetes::Api::new(config.server, Caller::Agent, clock)), config.node);
            Delegated::new(config.admin_socket, pods, &trust_domain)
        };
        let api = match way {
            WayConfig::Broker(config) => Api::Broker(broker(config)),
            WayConfig::Delegated(config) => Api::Delegated(Box::new(delegated(config))),
            WayConfig::Either(one, other) => {
                Api::Either(Box::new(Either::new(broker(one), delegated(other))))
            }
        };
        Self::new(api, trust_domain, hint, clock)
    }

    fn new(api: Api, domain: TrustDomain, hint: Option<String>, clock: Clock) -> Self {
        let (births, born) = mpsc::unbounded_channel();
        let (pushes, told) = mpsc::channel(PUSHES);
        Self {
            office: Arc::new(Office { api, domain, hint, clock, pushes }),
            pods: Mutex::default(),
            births,
            born: AsyncMutex::new(born),
            pushed: AsyncMutex::new(told),
        }
    }

    /// Follows SPIRE until `shutdown`: without it nobody is told anything. Owns the streams' tasks.
    pub async fn run(&self, shutdown: &CancellationToken) {
        let mut born = self.born.lock().await;
        let mut streams = JoinSet::new();
        let office = Arc::clone(&self.office);
        streams.spawn(async move { office.api.follow().await });
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(watcher) = born.recv() => {
                    streams.spawn(watcher.follow());
                }
                Some(ended) = streams.join_next() => {
                    if let Err(failed) = ended && failed.is_panic() {
                        tracing::error!("BUG: a pod's stream panicked; its identity is kept and not renewed");
                    }
                    self.pods().retain(|_, pod| pod.strong_count() > 0);
                }
            }
        }
        streams.shutdown().await;
    }

    /// Whether SPIRE has told us who we are; else why not.
    pub(crate) fn reached(&self) -> Result<(), String> {
        self.office.api.reached()
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<Workload, Weak<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod's stream: the one there is, or a new one. It ends when the last holder drops it.
    pub(crate) fn subscribe(&self, workload: &Workload) -> Arc<Pod> {
        let mut pods = self.pods();
        if let Some(pod) = pods.get(workload).and_then(Weak::upgrade) {
            return pod;
        }
        let (pod, watcher) = pair(&self.office, workload);
        let pod = Arc::new(pod);
        pods.insert(workload.clone(), Arc::downgrade(&pod));
        // Nobody is there to take it on only when the agent is ending.
        self.births.send(watcher).unwrap_or_default();
        pod
    }

    /// The next change of a pod's identity.
    pub(crate) async fn changed(&self) -> Push {
        match self.pushed.lock().await.recv().await {
            Some(push) => push,
            // Not while `self` lives, for it holds a sender.
            None => std::future::pending().await,
        }
    }

    /// The pod's identity as SPIRE said it last.
    ///
    /// # Errors
    /// [`Error::IdentityUnavailable`] if there is none yet, or the `current` one has lived for three quarters of its
    /// life without SPIRE sending another; [`Error::IdentityRefused`] if SPIRE refuses the pod, and
    /// [`Error::IdentityWithdrawn`] if it has given one and taken it back.
    pub(crate) async fn x509(
        &self,
        workload: &Workload,
        current: Option<&Identity>,
    ) -> Result<Identity, Error> {
        let clock = &self.office.clock;
        let pod = self.subscribe(workload);
        let (svid, trouble) = pod.svid(clock).await?;
        let life = svid.not_after.duration_since(svid.not_before).unwrap_or_default();
        let identity = Identity {
            spiffe_id: svid.spiffe_id.clone(),
            renew_at: svid.not_after - life / 4,
            x509: svid,
            ticket: crate::identity::Ticket::default(),
        };
        let again = current.is_some_and(|current| Arc::ptr_eq(&current.x509, &identity.x509));
        if again && identity.renew_at <= clock.wall() {
            let left = identity.x509.not_after.duration_since(clock.wall()).unwrap_or_default().as_secs();
            let cause = trouble.map_or_else(
                || "; look at the SPIRE agent's log, and whether it reaches its server".to_owned(),
                |error| format!(": {error}"),
            );
            return Err(unavailable(format!(
                "{} of pod {workload} ends in {left} s, and SPIRE has not renewed it{cause}",
                identity.spiffe_id
            )));
        }
        Ok(identity)
    }

    /// A JWT-SVID of the pod for `audience`.
    ///
    /// # Errors
    /// As SPIRE answers; [`Error::IdentityRefused`] for one that breaks a rule or is for somebody else.
    pub(crate) async fn jwt(
        &self,
        workload: &Workload,
        identity: &Identity,
        audience: &str,
    ) -> Result<JwtSvid, Error> {
        if audience.is_empty() {
            // SPIRE would answer "unavailable", which it will be for ever.
            return Err(refused(format!("pod {workload}: a JWT-SVID needs an audience, and it is empty")));
        }
        let (api, clock) = (&self.office.api, &self.office.clock);
        let asked = api.jwts(workload, audience, identity.spiffe_id.as_str());
        let svids = match tokio::time::timeout(JWT_LIMIT, asked).await {
            Ok(Ok(svids)) => svids,
            Ok(Err(trouble)) => return Err(trouble.error()),
            Err(_) => {
                return Err(unavailable(format!(
                    "SPIRE sent no JWT-SVID of pod {workload} within {} s",
                    JWT_LIMIT.as_secs()
                )));
            }
        };
        let ours = svids.into_iter().find(|(id, _)| id == identity.spiffe_id.as_str());
        let Some((_, token)) = ours else {
            return Err(unavailable(format!(
                "SPIRE sent no JWT-SVID of pod {workload} for {}",
                identity.spiffe_id
            )));
        };
        let now = clock.wall();
        let expires = verify_jwt(&token, &identity.spiffe_id, audience, now)
            .map_err(|broken| refused(format!("the JWT-SVID that SPIRE sent can't be used: {broken}")))?;
        let keys = api.keys().await.map_err(|trouble| trouble.error())?;
        keys.vouch(&token, clock.now()).await?;
        Ok(JwtSvid { token, expires, renew_at: renew_at(now, expires, rand::random()) })
    }
}

#[cfg(test)]
mod tests;
