//! What is counted of one store.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Which store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Store {
    store: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Revoked {
    store: String,
    result: Outcome,
}

/// What became of a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Ok,
    Retried,
    GivenUp,
}

impl EncodeLabelValue for Outcome {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        let word = match self {
            Self::Ok => "ok",
            Self::Retried => "retried",
            Self::GivenUp => "given_up",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

/// The families of all stores of this kind.
#[derive(Debug, Clone, Default)]
pub struct Families {
    tokens: Family<Store, Gauge>,
    leases: Family<Store, Gauge>,
    revocations: Family<Revoked, Counter>,
    streams: Family<Store, Gauge>,
    streams_open: Family<Store, Gauge>,
}

impl Families {
    /// Registers them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "vault_tokens",
            "Identities with a token for plain reads, by store",
            self.tokens.clone(),
        );
        registry.register("leases", "Leased credentials in use, by store", self.leases.clone());
        registry.register(
            "lease_revocations",
            "Tokens and leases given back, by store and result",
            self.revocations.clone(),
        );
        registry.register(
            "vault_event_streams",
            "Event streams that are wanted, one for an identity and namespace, by store",
            self.streams.clone(),
        );
        registry.register(
            "vault_event_streams_open",
            "Event streams that are open, by store",
            self.streams_open.clone(),
        );
    }

    pub(super) fn of(&self, store: &str) -> Meters {
        let store = Store { store: store.to_owned() };
        Meters {
            tokens: self.tokens.get_or_create(&store).clone(),
            leases: self.leases.get_or_create(&store).clone(),
            revocations: self.revocations.clone(),
            streams: self.streams.get_or_create(&store).clone(),
            streams_open: self.streams_open.get_or_create(&store).clone(),
            store,
        }
    }
}

/// What is counted of one store.
#[derive(Debug, Clone)]
pub(super) struct Meters {
    store: Store,
    pub(super) tokens: Gauge,
    pub(super) leases: Gauge,
    revocations: Family<Revoked, Counter>,
    streams: Gauge,
    streams_open: Gauge,
}

/// Counts one event stream for as long as it is wanted.
#[derive(Debug)]
pub(super) struct Streams {
    wanted: Gauge,
    open: Gauge,
    is_open: AtomicBool,
}

impl Streams {
    /// Whether it is open now.
    pub(super) fn open(&self, now: bool) {
        match (self.is_open.swap(now, Ordering::Relaxed), now) {
            (false, true) => {
                self.open.inc();
            }
            (true, false) => {
                self.open.dec();
            }
            (true, true) | (false, false) => {}
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.open(false);
        self.wanted.dec();
    }
}

impl Meters {
    pub(super) fn stream(&self) -> Streams {
        self.streams.inc();
        Streams {
            wanted: self.streams.clone(),
            open: self.streams_open.clone(),
            is_open: AtomicBool::new(false),
        }
    }

    pub(super) fn revoked(&self, result: Outcome) {
        self.revocations.get_or_create(&Revoked { store: self.store.store.clone(), result }).inc();
    }
}
