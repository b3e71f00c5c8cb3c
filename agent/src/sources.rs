//! What a turn needs from outside the node: one seam for the real sources, for their metrics, and for tests.

use std::future::Future;

use crate::Error;
use crate::identity::{Identity, JwtSvid, Push, Subscription, Token, Workload};
use crate::request::Source;
use crate::store::Fetched;

/// Identities and secrets, wherever they come from.
///
/// Every call may be dropped before it ends (a volume that goes does not wait), and none retries: when to come
/// again is decided by the caller.
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

    /// Begins to follow a pod's identity, where its source reports changes by itself. To be held for as long as the
    /// pod has a volume.
    fn subscribe(&self, workload: &Workload) -> Subscription {
        let _ = workload;
        Subscription::default()
    }

    /// The next change of the identity of a pod that is followed. Only one caller at a time is served.
    fn changed(&self) -> impl Future<Output = Push> + Send {
        std::future::pending()
    }

    /// A secret, read as `identity`.
    fn fetch(
        &self,
        identity: &Identity,
        source: &Source,
    ) -> impl Future<Output = Result<Fetched, Error>> + Send;
}
