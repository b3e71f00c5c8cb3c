//! Gives back what is not used any more: tokens, and with them their leases. It outlives the volumes they were for.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::client::{Credential, json_body};
use super::login::{Door, said};
use super::meters::{Meters, Outcome};
use super::token::Token;
use crate::Error;
use crate::cache::pause;

/// Revocations under way at once: when a node is drained, hundreds of pods end together.
const AT_ONCE: usize = 4;
/// One that has not succeeded after this long is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(3600);
/// How long the end of the process waits for those under way.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What is to be revoked.
#[derive(Debug)]
pub(super) struct Revocation {
    token: Arc<Token>,
    /// The lease that hangs on it.
    lease: Option<Arc<str>>,
    /// Not before this has passed.
    after: Duration,
}

impl Revocation {
    pub(super) fn of_token(token: &Arc<Token>, after: Duration) -> Self {
        Self { token: Arc::clone(token), lease: None, after }
    }

    pub(super) fn of_lease(token: &Arc<Token>, lease: &Arc<str>, after: Duration) -> Self {
        Self { token: Arc::clone(token), lease: Some(Arc::clone(lease)), after }
    }
}

/// Takes revocations.
#[derive(Debug, Clone)]
pub(super) struct Reaper {
    outbox: mpsc::UnboundedSender<Revocation>,
    /// Set when the store runs.
    ending: Arc<OnceLock<CancellationToken>>,
}

impl Reaper {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Revocation>) {
        let (outbox, inbox) = mpsc::unbounded_channel();
        (Self { outbox, ending: Arc::default() }, inbox)
    }

    /// Revokes it in time.
    pub(super) fn take(&self, revocation: Revocation) {
        // A batch token without a lease leaves nothing behind.
        let nothing = revocation.token.batch && revocation.lease.is_none();
        if !nothing && !self.ending.get().is_some_and(CancellationToken::is_cancelled) {
            self.outbox.send(revocation).unwrap_or_default();
        }
    }

    /// From `shutdown` on nothing is taken: what is dropped then is dropped because the agent ends, and the pods live
    /// on with it.
    pub(super) fn ends_with(&self, shutdown: &CancellationToken) {
        self.ending.get_or_init(|| shutdown.clone());
    }
}

/// Revokes what comes until `shutdown`, then what is under way, for a moment longer.
pub(super) async fn run(
    door: &Door,
    store: &str,
    meters: &Meters,
    inbox: &mut mpsc::UnboundedReceiver<Revocation>,
    shutdown: &CancellationToken,
) {
    let places = Semaphore::new(AT_ONCE);
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = under_way.next(), if !under_way.is_empty() => {}
            () = shutdown.cancelled() => break,
            Some(revocation) = inbox.recv() => {
                under_way.push(carry_out(door, store, meters, &places, revocation, shutdown));
            }
        }
    }
    // Those that came before the end.
    while let Ok(revocation) = inbox.try_recv() {
        under_way.push(carry_out(door, store, meters, &places, revocation, shutdown));
    }
    let rest = async { while under_way.next().await.is_some() {} };
    if tokio::time::timeout(LAST_WAIT, rest).await.is_err() {
        tracing::warn!(store, left = under_way.len(), "the agent ends with revocations under way");
    }
}

async fn carry_out(
    door: &Door,
    store: &str,
    meters: &Meters,
    places: &Semaphore,
    revocation: Revocation,
    shutdown: &CancellationToken,
) {
    let Revocation { token, lease, after } = revocation;
    let (accessor, lease) = (&*token.accessor, lease.as_deref());
    if !after.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(after) => {}
            // Pods may still be using it, and it ends by itself.
            () = shutdown.cancelled() => return,
        }
    }
    let began = door.clock.now();
    let mut attempts = 0;
    loop {
        let revoked = {
            let _place = places.acquire().await;
            revoke(door, &token, lease).await
        };
        let last = shutdown.is_cancelled();
        attempts += 1;
        let error = match revoked {
            Ok(()) => {
                tracing::debug!(store, accessor, lease, attempts, "revoked");
                meters.revoked(if attempts == 1 { Outcome::Ok } else { Outcome::Retried });
                return;
            }
            Err(error) => error,
        };
        let now = door.clock.now();
        let ended = !token.is_alive(now);
        let hopeless = !matches!(error, Error::StoreUnavailable { .. });
        if last || ended || hopeless || now - began > GIVEN_UP_AFTER {
            meters.revoked(Outcome::GivenUp);
            tracing::warn!(
                store, accessor, lease, attempts, %error,
                "could not be revoked and is given up; it ends by its own TTL, or by vault token revoke -accessor"
            );
            return;
        }
        if attempts == 1 {
            tracing::info!(store, accessor, lease, %error, "could not be revoked yet; it is tried again");
        }
        tokio::select! {
            () = tokio::time::sleep(pause(&error, attempts)) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

async fn revoke(door: &Door, token: &Token, lease: Option<&str>) -> Result<(), Error> {
    let Some(lease) = lease.filter(|_| token.batch) else { return door.revoke(token).await };
    // A batch token cannot be revoked, and its leases only by whoever may.
    let body = json_body(&serde_json::json!({ "lease_id": lease }));
    let credential = Credential::Token(&token.secret);
    let reply = door.post("sys/leases/revoke", credential, body.as_ref(), true).await?;
    if reply.status.is_success() {
        return Ok(());
    }
    door.passing(&reply, "revoking a lease")?;
    Err(Error::Unusable {
        store: String::new(),
        problem: format!(
            "{}; leases of batch tokens are revoked through sys/leases/revoke, which the policy must allow: give the role token_type=service",
            said(&reply, &[&token.secret])
        ),
    })
}
