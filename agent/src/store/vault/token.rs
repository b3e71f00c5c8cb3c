//! A token of the server's: what it is, and how long it is good for.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::answer::Auth;
use crate::secret::Secret;

/// A token as it was granted, or as it is after a renewal.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) secret: Arc<Secret>,
    /// Names it without giving it away (Vault's concepts, "Token accessors").
    pub(super) accessor: Arc<str>,
    pub(super) policies: Arc<[String]>,
    pub(super) renewable: bool,
    /// Lives without a trace in storage; cannot be renewed or revoked.
    pub(super) batch: bool,
    /// When it was logged in for.
    pub(super) since: Instant,
    /// How long it was good for at first.
    pub(super) ttl: Duration,
    /// Two thirds of what was granted last.
    pub(super) refresh_at: Option<Instant>,
    /// None: it does not end.
    pub(super) ends: Option<Instant>,
}

impl Token {
    /// From the answer to a login. `renews`: whether this method's tokens may be renewed at all.
    pub(super) fn granted(auth: &Auth<'_>, renews: bool, now: Instant) -> Self {
        let ttl = Duration::from_secs(auth.lease_duration);
        let batch = auth.token_type == "batch";
        let mut token = Self {
            secret: Arc::new(Secret::from(auth.client_token.to_string())),
            accessor: auth.accessor.as_ref().into(),
            policies: auth.token_policies.clone().unwrap_or_default().into(),
            renewable: renews && auth.renewable && !batch,
            batch,
            since: now,
            ttl,
            refresh_at: None,
            ends: None,
        };
        token.extend(ttl, now);
        token
    }

    /// As it is after a renewal granted `granted`. One that gives less than was asked for is near its end for good:
    /// it is not renewed again.
    pub(super) fn renewed(&self, granted: Duration, renewable: bool, now: Instant) -> Self {
        let mut token = self.clone();
        token.extend(granted, now);
        token.renewable = renewable && granted >= self.ttl.mul_f64(0.9);
        token
    }

    fn extend(&mut self, granted: Duration, now: Instant) {
        if granted.is_zero() {
            (self.refresh_at, self.ends) = (None, None);
        } else {
            (self.refresh_at, self.ends) = (Some(now + two_thirds(granted)), Some(now + granted));
        }
    }

    pub(super) fn is_alive(&self, now: Instant) -> bool {
        self.ends.is_none_or(|ends| ends > now)
    }

    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.is_alive(now) && self.refresh_at.is_none_or(|at| at > now)
    }
}

/// Two thirds of `span`, up to a tenth earlier: what was granted at once is not renewed at once.
pub(super) fn two_thirds(span: Duration) -> Duration {
    span.mul_f64(rand::rng().random_range(0.6..=0.667))
}
