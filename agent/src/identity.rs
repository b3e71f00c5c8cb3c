//! Who a pod is: its SVIDs, from whichever source vouches for it.

pub(crate) mod channel;
pub mod choice;
pub mod embedded;
pub(crate) mod key;
pub(crate) mod renewal;
pub(crate) mod replicas;
pub(crate) mod reread;
pub mod spire;
pub mod svid;
pub(crate) mod token;
pub(crate) mod trust;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use crate::identity::embedded::Embedded;
pub use crate::identity::replicas::Standing;
pub use crate::identity::spire::Spire;

use crate::Error;
use crate::secret::Secret;
use crate::sources::{Caller, Mint};
use crate::spiffe::{SpiffeId, TrustDomain};

/// The pod as kubelet named it: what an identity is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Uid of the pod: unique over its cluster's life, so a pod recreated under the same name is another.
    pub pod_uid: String,
    /// Name of the pod's service account.
    pub service_account: String,
    /// Which of several SVIDs of the pod is meant; none: the one that the agent is set up for.
    pub hint: Option<Arc<str>>,
}

impl Workload {
    /// Whether both are the same pod, whichever of its SVIDs is meant.
    pub(crate) fn is_pod_of(&self, other: &Self) -> bool {
        let Self { namespace, pod_name, pod_uid, service_account, hint: _ } = self;
        (namespace, pod_name, pod_uid, service_account)
            == (&other.namespace, &other.pod_name, &other.pod_uid, &other.service_account)
    }

    /// The same pod by the SVID that has this hint.
    pub(crate) fn hinted(&self, hint: &Arc<str>) -> Self {
        Self { hint: Some(Arc::clone(hint)), ..self.clone() }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod_name)
    }
}

/// A pod-bound service account token of kubelet's.
#[derive(Debug)]
pub struct Token {
    /// The audience it was requested for.
    pub audience: String,
    /// The JWT.
    pub token: Secret,
}

/// A verified X.509-SVID with its key and the roots of its trust domain.
#[derive(Debug)]
pub struct X509Svid {
    /// The one URI name of the leaf.
    pub spiffe_id: SpiffeId,
    /// DER certificates, the leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    pub key: Secret,
    /// DER roots of `spiffe_id`'s trust domain, and of no other.
    pub roots: Vec<Vec<u8>>,
    /// DER roots of the other trust domains that the workload is to know, each by itself.
    pub federated: BTreeMap<TrustDomain, Vec<Vec<u8>>>,
    /// When the leaf becomes valid.
    pub not_before: SystemTime,
    /// When the leaf ends.
    pub not_after: SystemTime,
}

/// A JWT-SVID.
#[derive(Debug)]
pub struct JwtSvid {
    /// The token in compact form.
    pub token: Secret,
    /// When it ends.
    pub expires: SystemTime,
    /// When another should be fetched.
    pub renew_at: SystemTime,
}

/// A pod's identity at one moment. A renewed one is a new value, with a new key.
#[derive(Debug)]
pub struct Identity {
    /// Who it is.
    pub spiffe_id: SpiffeId,
    /// The certificate and key.
    pub x509: Arc<X509Svid>,
    /// When another should be asked for: at half of its life ±10 %, or at three quarters where the source sends
    /// new ones by itself and should have done so by then.
    pub renew_at: SystemTime,
    /// For a renewal without a token, where the source is the embedded issuer.
    pub(crate) ticket: Ticket,
}

/// The issuer's word, given with an SVID, for what is asked of it by that SVID's key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ticket {
    /// Opaque; nobody but the issuer reads it.
    pub(crate) text: String,
    /// A token of the pod's was the proof for it, and no ticket before it.
    pub(crate) by_token: bool,
}

/// A change of a pod's identity that its source reports by itself.
#[derive(Debug, Clone)]
pub struct Push {
    /// Whose.
    pub workload: Workload,
    /// What it is now; none: it was withdrawn.
    pub svid: Option<Arc<X509Svid>>,
}

/// Keeps an identity source's attention on a pod; dropped when the pod's volume goes.
#[derive(Debug, Default)]
pub struct Subscription {
    _pod: Option<Arc<spire::Pod>>,
}

impl Mint for Source {
    async fn mint(&self, caller: Caller<'_>, audience: &str) -> Result<JwtSvid, Error> {
        self.jwt(caller.workload, caller.tokens, caller.identity, audience).await
    }
}

/// The roots of a trust domain, DER; shared by everybody who shows them.
pub type Roots = Arc<Vec<Vec<u8>>>;

impl Identity {
    /// The same identity beside `roots`; nothing unless they are others and vouch for it, at `now`.
    pub(crate) fn beside(&self, roots: &Roots, now: SystemTime) -> Option<Self> {
        let held = &self.x509;
        if held.roots == **roots || !svid::vouched_for(&held.chain, roots, &held.spiffe_id, now) {
            return None;
        }
        let x509 = X509Svid {
            spiffe_id: held.spiffe_id.clone(),
            chain: held.chain.clone(),
            key: held.key.duplicate(),
            roots: roots.to_vec(),
            federated: held.federated.clone(),
            not_before: held.not_before,
            not_after: held.not_after,
        };
        Some(Self {
            spiffe_id: self.spiffe_id.clone(),
            x509: Arc::new(x509),
            renew_at: self.renew_at,
            ticket: self.ticket.clone(),
        })
    }
}

/// Where identities come from.
#[derive(Debug)]
pub enum Source {
    /// The embedded issuer, by kubelet's pod-bound token.
    Embedded(Box<Embedded>),
    /// SPIRE, which attests the pod itself.
    Spire(Spire),
}

impl Source {
    /// Keeps what it knows of the source up to date until `shutdown`.
    pub async fn run(&self, shutdown: &CancellationToken) {
        match self {
            Self::Embedded(embedded) => embedded.run(shutdown).await,
            Self::Spire(spire) => spire.run(shutdown).await,
        }
    }

    /// Whether the source was reached when that was last tried; else why not.
    pub fn reached(&self) -> Result<(), String> {
        match self {
            Self::Embedded(embedded) => embedded.reached(),
            Self::Spire(spire) => spire.reached(),
        }
    }

    /// How the replicas of the issuer stand; nothing where there is no issuer.
    pub fn replicas(&self) -> Option<Standing> {
        match self {
            Self::Embedded(embedded) => Some(embedded.standing()),
            Self::Spire(_) => None,
        }
    }

    /// The roots of the trust domain as they change; nothing where only a new SVID brings them.
    pub fn roots(&self) -> Option<watch::Receiver<Roots>> {
        match self {
            Self::Embedded(embedded) => embedded.roots(),
            // SPIRE sends the pod's SVID again, with them.
            Self::Spire(_) => None,
        }
    }

    /// A new X.509-SVID with a new key for `workload`: by one of `tokens` if it is good, else by the key of the
    /// `current` identity.
    pub async fn x509(
        &self,
        workload: &Workload,
        tokens: &[Token],
        current: Option<&Identity>,
    ) -> Result<Identity, Error> {
        match self {
            // One identity for each service account: whoever asks for another one would get somebody else's.
            Self::Embedded(_) if workload.hint.is_some() => Err(Error::request(
                "svid.countersign.dev/hint",
                "the embedded issuer gives each pod one SVID, without a hint; leave the key out",
            )),
            Self::Embedded(embedded) => embedded.x509(workload, tokens, current).await,
            Self::Spire(spire) => spire.x509(workload, current).await,
        }
    }

    /// A new JWT-SVID for `audience`: by one of `tokens` if it is good, else by the key of `identity`.
    pub async fn jwt(
        &self,
        workload: &Workload,
        tokens: &[Token],
        identity: &Identity,
        audience: &str,
    ) -> Result<JwtSvid, Error> {
        match self {
            Self::Embedded(embedded) => embedded.jwt(workload, tokens, identity, audience).await,
            Self::Spire(spire) => spire.jwt(workload, identity, audience).await,
        }
    }

    /// Begins to follow a pod, where the source reports changes by itself.
    pub fn subscribe(&self, workload: &Workload) -> Subscription {
        match self {
            Self::Embedded(_) => Subscription::default(),
            Self::Spire(spire) => Subscription { _pod: Some(spire.subscribe(workload)) },
        }
    }

    /// The next change of a followed pod's identity; never comes from a source that has to be asked.
    pub async fn changed(&self) -> Push {
        match self {
            Self::Embedded(_) => std::future::pending().await,
            Self::Spire(spire) => spire.changed().await,
        }
    }
}
