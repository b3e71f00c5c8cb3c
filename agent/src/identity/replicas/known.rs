//! The replicas that are known, and finding out who has come and gone.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::address::{NoReplica, lookup};
use crate::identity::channel::Dialer;
use crate::identity::trust::Bundle;

/// How long a connection is used, a fifth more or less. Where one address stands for several replicas, the load reaches those that
/// were added only with new connections.
const LIFE: Duration = Duration::from_secs(10 * 60);

/// The replicas as they are known now.
pub(super) struct Known {
    pub(super) bundle: Arc<Bundle>,
    pub(super) dialer: Dialer,
    pub(super) resolved_at: Instant,
    pub(super) replicas: Vec<Replica>,
}

#[derive(Clone)]
pub(super) struct Replica {
    pub(super) address: SocketAddr,
    pub(super) channel: Channel,
    /// When another connection is to take this one's place.
    pub(super) until: Instant,
    pub(super) failed_at: Option<Instant>,
    /// Whether it answered when it was last asked; nothing before that.
    pub(super) answered: Option<bool>,
}

/// How many replicas there are, by what came of asking each last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Those that answered.
    pub answering: usize,
    /// Those that did not.
    pub failing: usize,
    /// Those that nobody has asked yet.
    pub untried: usize,
}

impl Known {
    pub(super) fn standing(&self) -> Standing {
        let count = |answered| self.replicas.iter().filter(|one| one.answered == answered).count();
        Standing { answering: count(Some(true)), failing: count(Some(false)), untried: count(None) }
    }

    /// Looks up the addresses. When that fails, the last known ones are as good as before.
    pub(super) async fn resolve(&mut self, address: &str, now: Instant) -> Result<(), NoReplica> {
        let found = match lookup(address).await {
            Ok(found) => found,
            Err(error @ NoReplica::Unresolved { .. }) if !self.replicas.is_empty() => {
                tracing::warn!(%error, "going on with the addresses last known");
                self.resolved_at = now;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.resolved_at = now;
        let mut held: HashMap<_, _> =
            self.replicas.drain(..).map(|replica| (replica.address, replica)).collect();
        let (mut kept, mut fresh) = (Vec::new(), Vec::new());
        for address in found {
            match held.remove(&address) {
                Some(replica) => kept.push(replica),
                None => fresh.push(Replica::new(address, &self.dialer, now)),
            }
        }
        if !fresh.is_empty() || !held.is_empty() {
            tracing::info!(
                address,
                replicas = kept.len() + fresh.len(),
                new = fresh.len(),
                gone = held.len(),
                "the issuer's replicas"
            );
        }
        kept.append(&mut fresh);
        // So that the agents of a cluster spread over the replicas.
        kept.shuffle(&mut rand::rng());
        self.replicas = kept;
        Ok(())
    }
}

impl Replica {
    /// One that nobody has asked yet.
    pub(super) fn new(address: SocketAddr, dialer: &Dialer, now: Instant) -> Self {
        let until = now + LIFE.mul_f64(rand::random_range(0.8..=1.2));
        Self { address, channel: dialer.channel(address), until, failed_at: None, answered: None }
    }

    /// The same with a connection of its own again, if this one's time is over. Calls under way go on over the one they have.
    pub(super) fn renewed(&mut self, dialer: &Dialer, now: Instant) {
        if self.until <= now {
            let Self { address, failed_at, answered, .. } = *self;
            *self = Self { failed_at, answered, ..Self::new(address, dialer, now) };
        }
    }
}
