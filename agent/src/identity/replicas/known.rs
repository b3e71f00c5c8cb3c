//! The replicas that are known, and finding out who has come and gone.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::seq::SliceRandom as _;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::address::{NoReplica, lookup};
use crate::identity::channel::Dialer;
use crate::identity::trust::Bundle;

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
    pub(super) failed_at: Option<Instant>,
}

impl Known {
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
                None => fresh.push(Replica::new(address, &self.dialer)),
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
    pub(super) fn new(address: SocketAddr, dialer: &Dialer) -> Self {
        Self { address, channel: dialer.channel(address), failed_at: None }
    }
}
