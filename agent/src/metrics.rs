//! What is counted, in the Prometheus text format (OpenMetrics 1.0). Labels are bounded: stores and kinds of error,
//! never a pod, a path or a volume.

mod measured;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::Error;
use crate::cache::Cache;
use crate::files::Change;
use crate::identity::Standing;
use crate::store::vault;
use crate::turn::Turned;

pub use measured::{Measured, MeasuredMint};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreOutcome {
    store: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Store {
    store: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// All metrics of one agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    volumes: Gauge,
    stale_volumes: Gauge,
    turns: Family<Outcome, Counter>,
    publishes: Family<Outcome, Counter>,
    publish_seconds: Histogram,
    files_written: Counter,
    bytes_written: Counter,
    fetches: Family<StoreOutcome, Counter>,
    fetch_seconds: Family<Store, Histogram>,
    identities: Family<Outcome, Counter>,
    identity_seconds: Histogram,
    pushes: Family<Outcome, Counter>,
    told: Family<Store, Counter>,
    notifications: Family<Outcome, Counter>,
    cache_entries: Gauge,
    ages: Family<Store, Seconds>,
    stale: Family<Store, Seconds>,
    driver_connected: Gauge,
    driver_registered: Gauge,
    source_reached: Gauge,
    replicas: Family<State, Gauge>,
    vault: vault::Families,
}

fn latency() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("countersign"),
            volumes: Gauge::default(),
            stale_volumes: Gauge::default(),
            turns: Family::default(),
            publishes: Family::default(),
            publish_seconds: latency(),
            files_written: Counter::default(),
            bytes_written: Counter::default(),
            fetches: Family::default(),
            fetch_seconds: Family::new_with_constructor(latency),
            identities: Family::default(),
            identity_seconds: latency(),
            pushes: Family::default(),
            told: Family::default(),
            notifications: Family::default(),
            cache_entries: Gauge::default(),
            ages: Family::default(),
            stale: Family::default(),
            driver_connected: Gauge::default(),
            driver_registered: Gauge::default(),
            source_reached: Gauge::default(),
            replicas: Family::default(),
            vault: vault::Families::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("volumes", "Volumes the agent keeps", self.volumes.clone());
        let help = "Volumes that could not be brought up to date at their last turn";
        r.register("volumes_stale", help, self.stale_volumes.clone());
        r.register("turns", "Turns of volumes, by what came of them", self.turns.clone());
        r.register("publish", "Publish calls of the driver, by what came of them", self.publishes.clone());
        let s = Unit::Seconds;
        r.register_with_unit("publish", "Time a publish took", s.clone(), self.publish_seconds.clone());
        r.register("files_written", "Files written into volumes", self.files_written.clone());
        r.register_with_unit(
            "written",
            "Bytes written into volumes",
            Unit::Bytes,
            self.bytes_written.clone(),
        );
        r.register("fetch", "Reads from stores, by store and result", self.fetches.clone());
        r.register_with_unit(
            "fetch",
            "Time a read from a store took, the login for it included",
            s.clone(),
            self.fetch_seconds.clone(),
        );
        r.register("identity", "SVIDs asked for, by result", self.identities.clone());
        let help = "Changes of pods' identities that their source reported by itself";
        r.register("identity_push", help, self.pushes.clone());
        let help = "Secrets in use that their store reported as changed";
        r.register("secret_changes_told", help, self.told.clone());
        r.register_with_unit("identity", "Time an SVID took", s.clone(), self.identity_seconds.clone());
        let help = "Pods that were told of changed files (on-change), by result";
        r.register("notifications", help, self.notifications.clone());
        r.register("cache_entries", "Secrets in the node cache", self.cache_entries.clone());
        let help = "Age of the oldest secret whose refresh fails, by store";
        r.register_with_unit("secret_stale", help, s.clone(), self.stale.clone());
        let help = "Age of the oldest secret in use, by store";
        r.register_with_unit("secret_age", help, s, self.ages.clone());
        r.register(
            "driver_connected",
            "Whether the driver's status socket answers",
            self.driver_connected.clone(),
        );
        let help = "Whether kubelet has registered the driver";
        r.register("driver_registered", help, self.driver_registered.clone());
        let help = "Whether the source of identities (any replica of the issuer, or SPIRE's agent) was reached when last tried";
        r.register("identity_source_reached", help, self.source_reached.clone());
        let help = "Replicas of the issuer that are known, by what came of asking each last; none with SPIRE";
        r.register("issuer_replicas", help, self.replicas.clone());
        self.vault.register(r);
    }

    /// What stores of Vault's kind count.
    pub(crate) fn vault(&self) -> &vault::Families {
        &self.vault
    }

    /// The text of `/metrics`.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    pub(crate) fn volumes(&self, all: usize, stale: usize) {
        for (gauge, count) in [(&self.volumes, all), (&self.stale_volumes, stale)] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn cache(&self, cache: &Cache) {
        self.cache_entries.set(i64::try_from(cache.len()).unwrap_or(i64::MAX));
        for (family, ages) in [(&self.stale, cache.stale()), (&self.ages, cache.ages())] {
            family.clear();
            for (store, age) in ages {
                family.get_or_create(&Store { store }).set(age.as_secs_f64());
            }
        }
    }

    pub(crate) fn notified(&self, result: &'static str) {
        self.notifications.get_or_create(&Outcome { result }).inc();
    }

    pub(crate) fn driver(&self, connected: bool, registered: bool) {
        self.driver_connected.set(i64::from(connected));
        self.driver_registered.set(i64::from(registered));
    }

    pub(crate) fn source(&self, reached: bool) {
        self.source_reached.set(i64::from(reached));
    }

    pub(crate) fn replicas(&self, standing: Option<Standing>) {
        let Some(Standing { answering, failing, untried }) = standing else { return };
        for (state, count) in [("answering", answering), ("failing", failing), ("untried", untried)] {
            self.replicas.get_or_create(&State { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn published(&self, took: Duration, result: Result<(), &Error>) {
        self.publish_seconds.observe(took.as_secs_f64());
        self.publishes.get_or_create(&Outcome { result: word(result) }).inc();
    }

    fn identity<T>(&self, took: Duration, result: &Result<T, Error>) {
        self.identity_seconds.observe(took.as_secs_f64());
        self.identities.get_or_create(&Outcome { result: word(result.as_ref().map(|_| ())) }).inc();
    }

    pub(crate) fn turned(&self, turned: &Turned) {
        let result = turned.trouble.as_ref().map_or(Ok(()), Err);
        self.turns.get_or_create(&Outcome { result: word(result) }).inc();
        if let Ok(Change::Replaced { files, bytes, .. }) = &turned.result {
            self.files_written.inc_by(*files as u64);
            self.bytes_written.inc_by(*bytes);
        }
    }
}

fn word(result: Result<(), &Error>) -> &'static str {
    result.map_or_else(Error::label, |()| "ok")
}
