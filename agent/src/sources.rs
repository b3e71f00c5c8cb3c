//! What a turn needs from outside the node: one seam for the real sources, for their metrics, and for tests.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::identity::{Identity, JwtSvid, Push, Roots, Standing, Subscription, Token, Workload};
use crate::request::Source;
use crate::spiffe::SpiffeId;
use crate::store::{Answer, Held};

/// Whose secret is asked for, and what the asking can be proven with.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The pod.
    pub workload: &'a Workload,
    /// Kubelet's tokens for it.
    pub tokens: &'a [Token],
    /// Its identity.
    pub identity: &'a Identity,
}

/// One question to a store.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who asks. The answer may be shared by everybody of the same SPIFFE ID, unless it is asked for `alone`.
    pub caller: Caller<'a>,
    /// What is asked for.
    pub source: &'a Source,
    /// For this volume and no other.
    pub alone: bool,
}

/// A secret that is not what it was when it was read last, by its store's word. What it is now, a read tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// As whom it was read.
    pub spiffe_id: SpiffeId,
    /// What was read.
    pub source: Source,
}

/// What a store needs of the identity source: to log in as the pod.
pub trait Mint: Sync {
    /// A JWT-SVID of the caller's for `audience`.
    fn mint(&self, caller: Caller<'_>, audience: &str)
    -> impl Future<Output = Result<JwtSvid, Error>> + Send;
}

/// Identities and secrets, wherever they come from.
///
/// Every call may be dropped before it ends (a volume that goes does not wait), and none retries: when to come
/// again is decided by the caller. No method has a default: whoever decorates sources must hand every call on.
pub trait Sources: Send + Sync + 'static {
    /// A new X.509-SVID with a new key for `workload`, vouched for by a token or, in its absence, by `current`.
    fn x509(
        &self,
        workload: &Workload,
        tokens: &[Token],
        current: Option<&Identity>,
    ) -> impl Future<Output = Result<Identity, Error>> + Send;

    /// A JWT-SVID for `audience`.
    fn jwt(
        &self,
        workload: &Workload,
        tokens: &[Token],
        identity: &Identity,
        audience: &str,
    ) -> impl Future<Output = Result<JwtSvid, Error>> + Send;

    /// Which SVID of a pod a store is shown, where the pod has several; none: the volume's own.
    fn hint(&self, store: &str) -> Option<Arc<str>>;

    /// Begins to follow a pod's identity, where its source reports changes by itself. To be held for as long as the
    /// pod has a volume.
    fn subscribe(&self, workload: &Workload) -> Subscription;

    /// The next change of the identity of a pod that is followed. Only one caller at a time is served.
    fn changed(&self) -> impl Future<Output = Push> + Send;

    /// A secret, read as the caller. `held` is what the store left there at the last question for the same: it may
    /// replace it whatever the answer is.
    fn fetch(
        &self,
        ask: Ask<'_>,
        held: &mut Option<Held>,
    ) -> impl Future<Output = Result<Answer, Error>> + Send;

    /// The next secret that its store reports as changed, where a store does that. Only one caller at a time is served.
    fn stale(&self) -> impl Future<Output = Stale> + Send;

    /// Keeps what it knows of the sources up to date until `shutdown`.
    fn run(&self, shutdown: &CancellationToken) -> impl Future<Output = ()> + Send;

    /// Whether the source of identities was reached when that was last tried; else why not.
    fn reached(&self) -> Result<(), String>;

    /// How the replicas of the issuer stand; nothing where there is no issuer.
    fn replicas(&self) -> Option<Standing> {
        None
    }

    /// The roots of the trust domain as they change; nothing where only a new SVID brings them.
    fn roots(&self) -> Option<watch::Receiver<Roots>>;
}
