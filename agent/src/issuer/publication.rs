//! The trust bundle of all replicas, in one `ConfigMap`: no private part of anything is in it.
//!
//! Each replica writes one entry for each of its generations (`anchor`), under `issuer-<id of the JWT key>`, and
//! signs nothing before it has seen its own entry there. `bundle.pem` and `bundle.json` are made from all entries
//! and change together with them. Every write names the version it started from, so nobody's entry is lost to a
//! race: the slower one looks again.
//!
//! An entry says until when it is needed. Its replica puts that off while it lives; of a replica that is gone the
//! entry stays until everything it signed has ended, and is then removed by whoever looks. An entry that somebody
//! removes by hand is trusted no more, unless it is that of a living replica, which publishes it again.
//!
//! The object is of one trust domain. Where that is changed, issuers of both write here until the last old one is gone:
//! then the bundle is written again after [`PEACE`] only, or they would undo each other's as fast as they can.
//!
//! Whoever may write this object decides whom the whole trust domain believes.

mod object;
mod plan;
mod progress;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::issuer::config::PublicationConfig;
use crate::issuer::health::Health;
use crate::issuer::keys::Keys;
use crate::issuer::metrics::Metrics;
use crate::kubernetes::{Api, ApiError, ConfigMap, Look};
use crate::spiffe::TrustDomain;
use object::Object;
use plan::{Facts, Plan, plan};
use progress::{Progress, Seen};

/// How often the entries are looked at without a reason: by then one may have to be put off or removed.
const LOOK: Duration = Duration::from_secs(300);
/// How often one unknown key makes us ask: an agent with a nonsense ticket must not make us a burden.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// The first pause after a write that failed; doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long what issuers of another trust domain have made of the bundle is left as it is: about as long as a rollout
/// has both. Newcomers do not wait.
const PEACE: Duration = Duration::from_secs(60);
/// Races lost in a row before a pause is made.
const RACES: u32 = 8;

/// Publishes this issuer's keys and learns the others'.
pub(crate) struct Publication {
    object: Object,
    replica: String,
    grace: Duration,
    /// The longest life of anything signed.
    longest: Duration,
    trust_domain: TrustDomain,
    keys: Arc<Keys>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    clock: Clock,
    asked: Mutex<Option<Instant>>,
}

impl Publication {
    pub(crate) fn new(
        config: PublicationConfig,
        api: Arc<Api>,
        longest: Duration,
        trust_domain: TrustDomain,
        keys: Arc<Keys>,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let PublicationConfig { object, replica, grace, .. } = config;
        let clock = api.clock();
        let object = Object::new(api, object);
        let asked = Mutex::new(None);
        Self { object, replica, grace, longest, trust_domain, keys, health, metrics, clock, asked }
    }

    /// Keeps the publication until `shutdown`. Our entries stay: what we signed lives on.
    pub(crate) async fn run(&self, shutdown: &CancellationToken) {
        // Only the latest look matters.
        let latest = watch::Sender::new(None);
        tokio::join!(
            self.object.follow(shutdown, |look| {
                latest.send_replace(Some(look));
            }),
            self.keep(&latest, shutdown),
        );
    }

    /// Looks once whether others have published a key we do not know, unless that was done just now.
    pub(crate) async fn look_again(&self) {
        let mut asked = self.asked.lock().await;
        let now = self.clock.now();
        if asked.is_some_and(|at| now.duration_since(at) < ASK_AGAIN) {
            return;
        }
        match self.object.get().await {
            Ok(map) => self.learn(&self.plan(&map.data)),
            Err(error) => tracing::warn!(%error, object = %self.object, "can't look for the keys of others"),
        }
        *asked = Some(self.clock.now());
    }

    async fn keep(&self, latest: &watch::Sender<Option<Look<ConfigMap>>>, shutdown: &CancellationToken) {
        let mut news = latest.subscribe();
        let mut progress = Progress::default();
        let mut changes = self.keys.revisions();
        loop {
            let look = self.clock.now() + LOOK;
            let next = progress.next().map_or(look, |next| next.min(look));
            tokio::select! {
                () = shutdown.cancelled() => return,
                alive = news.changed() => if alive.is_err() { return },
                alive = changes.changed() => if alive.is_err() { return },
                () = tokio::time::sleep_until(next) => {}
            }
            news.mark_unchanged();
            let mut look = None;
            latest.send_if_modified(|latest| {
                look = latest.take();
                false
            });
            changes.mark_unchanged();
            progress.fresh = matches!(look, Some(Look::Is(_)));
            match look {
                None => {}
                Some(Look::Is(map)) => progress.seen = Seen::Is(Arc::new(map)),
                Some(Look::Missing) => progress.seen = Seen::Missing,
                // A write needs no watch; where it fails too, it says so.
                Some(Look::Failed(error)) if !matches!(progress.seen, Seen::Never) => {
                    tracing::debug!(%error, object = %self.object, "can't be watched");
                }
                Some(Look::Failed(error)) => self.trouble(&mut progress, &error),
            }
            let due = progress.again.is_none_or(|at| at <= self.clock.now());
            match progress.seen.clone() {
                Seen::Is(map) if due => self.settle(&mut progress, Some(map)).await,
                Seen::Missing if due => self.settle(&mut progress, None).await,
                Seen::Never | Seen::Is(_) | Seen::Missing => {}
            }
            self.open(&mut progress);
        }
    }

    /// Brings the object to where it should be, and learns what is in it.
    async fn settle(&self, progress: &mut Progress, mut map: Option<Arc<ConfigMap>>) {
        let nothing = BTreeMap::new();
        for _ in 0..RACES {
            let plan = self.plan(map.as_ref().map_or(&nothing, |map| &map.data));
            self.warn(progress, &plan);
            progress.seen = map.as_ref().map_or(Seen::Missing, |map| Seen::Is(Arc::clone(map)));
            if plan.changes.is_empty() || self.yields(progress, &plan) {
                self.settled(progress, &plan);
                return;
            }
            let now = match self.object.write(map.as_deref(), &plan.changes).await {
                Ok(new) => {
                    progress.contested = None;
                    progress.fresh = true;
                    tracing::info!(
                        object = %self.object, roots = plan.roots, removed = plan.removed,
                        "the trust bundle is published"
                    );
                    Ok(new)
                }
                // Somebody was faster, or it is gone, or it has come: look again.
                Err(error) if error.is_conflict() || error.is_missing() => self.object.get().await,
                Err(error) => Err(error),
            };
            map = match now {
                Ok(new) => Some(Arc::new(new)),
                Err(error) if error.is_missing() => None,
                Err(error) => return self.trouble(progress, &error),
            };
        }
        // Many replicas at once: the others go first.
        progress.again = Some(self.clock.now() + RETRY.0);
    }

    /// Whether the bundle is left to another trust domain's issuers for now. Ours have published, and go on.
    fn yields(&self, progress: &mut Progress, plan: &Plan) -> bool {
        if !plan.contested() {
            progress.contested = None;
            return false;
        }
        let now = self.clock.now();
        if progress.contested.is_none() {
            tracing::warn!(
                object = %self.object, trust_domain = %self.trust_domain,
                "issuers of another trust domain publish here too: the bundle goes back and forth until the last of \
                 one side is gone; two releases need a namespace each"
            );
        }
        *progress.contested.get_or_insert(now + PEACE) > now
    }

    fn plan(&self, data: &BTreeMap<String, String>) -> Plan {
        plan(
            data,
            &Facts {
                own: &self.keys.own(),
                replica: &self.replica,
                trust_domain: &self.trust_domain,
                longest: self.longest,
                sequence: self.keys.bundle().1,
                now: self.clock.wall(),
            },
        )
    }

    fn learn(&self, plan: &Plan) {
        self.keys.join(plan.others.clone(), plan.sequence, plan.published.clone());
    }

    /// Everything is as it should be, and was seen so.
    fn settled(&self, progress: &mut Progress, plan: &Plan) {
        self.learn(plan);
        if progress.fresh {
            self.metrics.confirmed(self.clock.unix());
        }
        progress.failures = 0;
        progress.again = None;
        if progress.ready.is_none() {
            // Where nobody else ever published, nobody holds a bundle that lacks us.
            let grace = if plan.others.is_empty() { Duration::ZERO } else { self.grace };
            progress.ready = Some(self.clock.now() + grace);
            if !grace.is_zero() {
                let problem = format!("published; ready {} later", humantime::format_duration(grace));
                self.health.published(Err(problem));
            }
        }
        if progress.open {
            self.health.published(Ok(()));
        }
    }

    fn open(&self, progress: &mut Progress) {
        if progress.open || progress.ready.is_none_or(|at| at > self.clock.now()) {
            return;
        }
        progress.open = true;
        self.keys.open();
        self.health.published(Ok(()));
        tracing::info!(object = %self.object, "the keys are published; signing from now on");
    }

    fn trouble(&self, progress: &mut Progress, error: &ApiError) {
        progress.failures = progress.failures.saturating_add(1);
        let pause = RETRY.0.saturating_mul(1 << (progress.failures - 1).min(10)).min(RETRY.1);
        let pause = error.retry_after().map_or(pause, |wanted| wanted.max(pause));
        progress.again = Some(self.clock.now() + pause);
        let remedy = if error.is_forbidden() {
            "; the issuer's service account needs the rights to get, list, watch and patch it"
        } else {
            ""
        };
        let problem = format!("{}: {error}{remedy}", self.object);
        // One that is published and open goes on: its keys are known, and the others' as far as they were.
        let news =
            if progress.open { progress.failures == 1 } else { self.health.published(Err(problem.clone())) };
        if news {
            tracing::warn!(%problem, "the trust bundle can't be kept");
        } else {
            tracing::debug!(%problem, "the trust bundle can't be kept");
        }
    }

    /// Says once of each entry that can't be used why.
    fn warn(&self, progress: &mut Progress, plan: &Plan) {
        let fresh = plan.unusable.iter().filter(|problem| !progress.warned.contains(problem));
        for problem in fresh {
            tracing::warn!(object = %self.object, "an entry of the trust bundle is left out: {problem}");
        }
        progress.warned.clone_from(&plan.unusable);
    }
}
