//! A credential with a lease, and the login it hangs on: kept alive while it is used, replaced before it ends.
//!
//! Each has a login of its own, so that revoking that token takes the lease along under the server's default policy,
//! and nothing else. Both have ends: the token's counts as much as the lease's, for with it the lease is revoked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use serde::Deserialize;
use tokio::time::Instant;

use super::answer::Reply;
use super::client::{Credential, json_body};
use super::login::{Door, Renewed, said};
use super::reaper::{Reaper, Revocation};
use super::token::{Token, two_thirds};
use crate::Error;
use crate::secret::Node;

/// A login of its own. When it goes, the token is revoked, and what hangs on it.
#[derive(Debug)]
pub(super) struct Tenancy {
    token: Mutex<Arc<Token>>,
    lease: Option<Arc<str>>,
    reaper: Reaper,
    /// Another took its place: it lives on for the overlap.
    replaced: AtomicBool,
    overlap: Duration,
}

impl Tenancy {
    pub(super) fn new(token: Token, reaper: Reaper, overlap: Duration) -> Self {
        Self {
            token: Mutex::new(Arc::new(token)),
            lease: None,
            reaper,
            replaced: AtomicBool::new(false),
            overlap,
        }
    }

    pub(super) fn token(&self) -> Arc<Token> {
        Arc::clone(&self.token.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_token(&self, token: Token) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(token);
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        let after = if self.replaced.load(Ordering::Relaxed) { self.overlap } else { Duration::ZERO };
        let token = self.token();
        self.reaper.take(match &self.lease {
            Some(lease) => Revocation::of_lease(&token, lease, after),
            None => Revocation::of_token(&token, after),
        });
    }
}

/// A leased credential in use.
#[derive(Debug)]
pub(super) struct Lease {
    tenancy: Tenancy,
    id: Arc<str>,
    pub(super) document: Arc<Node>,
    pub(super) version: String,
    /// How long it was granted for at first.
    granted: Duration,
    state: Mutex<State>,
    /// Counts those in use.
    gauge: Gauge,
}

#[derive(Debug, Clone, Copy)]
struct State {
    renewable: bool,
    renew_at: Instant,
    ends: Instant,
}

/// How a lease stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Good; to be looked at again after this at the latest.
    Good(Duration),
    /// About to end, and not to be extended: time for another.
    Ending,
    /// The server does not know it any more.
    Gone(String),
}

/// What a lease's renewal or lookup says.
#[derive(Deserialize)]
struct Granted {
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

/// What the answer to a read says of its lease.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) id: String,
    pub(super) duration: Duration,
    pub(super) renewable: bool,
}

impl Lease {
    pub(super) fn new(
        mut tenancy: Tenancy,
        terms: Terms,
        document: Arc<Node>,
        version: String,
        gauge: Gauge,
        now: Instant,
    ) -> Self {
        let id: Arc<str> = terms.id.into();
        tenancy.lease = Some(Arc::clone(&id));
        gauge.inc();
        let state = State {
            renewable: terms.renewable && !tenancy.token().batch,
            renew_at: now + two_thirds(terms.duration),
            ends: now + terms.duration,
        };
        Self { tenancy, id, document, version, granted: terms.duration, state: Mutex::new(state), gauge }
    }

    /// Another takes its place: it is revoked an overlap after the last file made from it is gone.
    pub(super) fn replaced(&self) {
        self.tenancy.replaced.store(true, Ordering::Relaxed);
    }

    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Renews what is due, else looks whether it is still there.
    ///
    /// # Errors
    /// What will pass, while there is time left.
    pub(super) async fn keep(&self, door: &Door) -> Result<Standing, Error> {
        match self.upkeep(door).await {
            Ok(Some(gone)) => Ok(Standing::Gone(gone)),
            Ok(None) => Ok(self.standing(door.clock.now())),
            // A server that does not answer may not give another either; but close to the end that is all there is to try.
            Err(error) => match self.standing(door.clock.now()) {
                Standing::Good(_) => Err(error),
                ending @ (Standing::Ending | Standing::Gone(_)) => Ok(ending),
            },
        }
    }

    /// Some: why it is gone.
    async fn upkeep(&self, door: &Door) -> Result<Option<String>, Error> {
        let now = door.clock.now();
        let token = self.tenancy.token();
        if self.ends(&token) <= now {
            return Ok(Some("it has ended".to_owned()));
        }
        let mut asked = false;
        if token.renewable && token.refresh_at.is_some_and(|at| at <= now) {
            asked = true;
            match door.renew(&token).await? {
                Renewed::Token(token) => self.tenancy.set_token(token),
                Renewed::Refused(_) if !door.knows(&token).await? => {
                    return Ok(Some("its login was revoked".to_owned()));
                }
                Renewed::Refused(said) => {
                    tracing::debug!(
                        accessor = &*token.accessor,
                        said,
                        "the login of a lease is not renewed any more"
                    );
                    self.tenancy.set_token(Token { renewable: false, ..Token::clone(&token) });
                }
            }
        }
        let state = self.state();
        if state.renewable && state.renew_at <= now {
            return self.renew(door).await;
        }
        if asked { Ok(None) } else { self.look_up(door).await }
    }

    async fn renew(&self, door: &Door) -> Result<Option<String>, Error> {
        let increment = self.granted.as_secs();
        let body = json_body(&serde_json::json!({ "lease_id": &*self.id, "increment": increment }));
        let token = self.tenancy.token();
        let reply =
            door.post("sys/leases/renew", Credential::Token(&token.secret), body.as_ref(), true).await?;
        if !reply.status.is_success() {
            return self.refused(door, &reply, "renew").await;
        }
        let granted: Granted =
            serde_json::from_slice(&reply.body).unwrap_or(Granted { lease_duration: 0, renewable: false });
        let now = door.clock.now();
        let span = Duration::from_secs(granted.lease_duration);
        // Less than was asked for: the greatest TTL is near, and what is granted shrinks from now on.
        let renewable = granted.renewable && span >= self.granted.mul_f64(0.9);
        tracing::debug!(
            lease = &*self.id,
            asked = increment,
            granted = granted.lease_duration,
            "lease renewed"
        );
        self.change(|state| *state = State { renewable, renew_at: now + two_thirds(span), ends: now + span });
        Ok(None)
    }

    async fn look_up(&self, door: &Door) -> Result<Option<String>, Error> {
        let body = json_body(&serde_json::json!({ "lease_id": &*self.id }));
        let token = self.tenancy.token();
        let reply =
            door.post("sys/leases/lookup", Credential::Token(&token.secret), body.as_ref(), true).await?;
        if reply.status.is_success() {
            return Ok(None);
        }
        self.refused(door, &reply, "look up").await
    }

    async fn refused(&self, door: &Door, reply: &Reply, doing: &str) -> Result<Option<String>, Error> {
        door.passing(reply, "looking after a lease")?;
        let token = self.tenancy.token();
        let said = said(reply, &[&token.secret]);
        match reply.status.as_u16() {
            // Vault's words: "lease not found", "invalid lease".
            400 | 404 => Ok(Some(format!("the server does not know its lease any more ({said})"))),
            _ if !door.knows(&token).await? => Ok(Some("its login was revoked".to_owned())),
            _ => {
                if self.state().renewable {
                    tracing::warn!(
                        lease = &*self.id,
                        said,
                        "the policy does not let a pod {doing} its own lease; the credential is replaced before it ends instead"
                    );
                }
                self.change(|state| state.renewable = false);
                Ok(None)
            }
        }
    }

    /// When the credential ends: with its lease, or with its login.
    fn ends(&self, token: &Token) -> Instant {
        let state = self.state();
        token.ends.map_or(state.ends, |ends| ends.min(state.ends))
    }

    fn standing(&self, now: Instant) -> Standing {
        let (state, token) = (self.state(), self.tenancy.token());
        // Time for two overlaps, or for a third of a short life.
        let lead = (self.tenancy.overlap * 2).max(Duration::from_secs(2)).min(self.granted / 3);
        let replace_at = self.ends(&token).checked_sub(lead).unwrap_or(now);
        if replace_at <= now {
            return Standing::Ending;
        }
        let mut next = replace_at;
        if state.renewable {
            next = next.min(state.renew_at);
        }
        if let Some(at) = token.refresh_at.filter(|_| token.renewable) {
            next = next.min(at);
        }
        Standing::Good(next.saturating_duration_since(now))
    }

    /// When to look at it first.
    pub(super) fn first_look(&self, now: Instant) -> Duration {
        match self.standing(now) {
            Standing::Good(span) => span,
            Standing::Ending | Standing::Gone(_) => Duration::ZERO,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
