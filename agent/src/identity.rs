//! Who a pod is: its SVIDs, from whichever source vouches for it.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::secret::Secret;
use crate::spiffe::SpiffeId;

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
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {}/{}", self.namespace, self.pod_name)
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
    /// When another should be fetched: half of its life, ±10 %.
    pub renew_at: SystemTime,
    /// The issuer's word for a renewal without a token; nobody else reads it.
    pub(crate) ticket: String,
}
