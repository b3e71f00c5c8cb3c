//! Sources as everybody else sees them, with every call counted and timed.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Metrics, Outcome, Store, StoreOutcome, word};
use crate::Error;
use crate::clock::Clock;
use crate::identity::{Identity, JwtSvid, Push, Roots, Standing, Subscription, Token, Workload};
use crate::sources::{Ask, Caller, Mint, Sources, Stale};
use crate::store::{Answer, Held};

/// Counts and times what stores ask of a mint by themselves, for their logins.
#[derive(Debug)]
pub struct MeasuredMint<'a, M> {
    mint: &'a M,
    metrics: &'a Metrics,
    clock: Clock,
}

impl<'a, M> MeasuredMint<'a, M> {
    /// Decorates `mint`.
    pub fn new(mint: &'a M, metrics: &'a Metrics, clock: Clock) -> Self {
        Self { mint, metrics, clock }
    }
}

impl<M: Mint> Mint for MeasuredMint<'_, M> {
    async fn mint(&self, caller: Caller<'_>, audience: &str) -> Result<JwtSvid, Error> {
        let began = self.clock.now();
        let result = self.mint.mint(caller, audience).await;
        self.metrics.identity(self.clock.now() - began, &result);
        result
    }
}

/// Sources whose every call is counted and timed.
#[derive(Debug)]
pub struct Measured<S> {
    sources: S,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl<S> Measured<S> {
    /// Decorates `sources`.
    #[must_use]
    pub fn new(sources: S, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { sources, metrics, clock }
    }

    fn identity<T>(&self, began: tokio::time::Instant, result: &Result<T, Error>) {
        self.metrics.identity(self.clock.now() - began, result);
    }
}

impl<S: Sources> Sources for Measured<S> {
    async fn x509(
        &self,
        workload: &Workload,
        tokens: &[Token],
        current: Option<&Identity>,
    ) -> Result<Identity, Error> {
        let began = self.clock.now();
        let result = self.sources.x509(workload, tokens, current).await;
        self.identity(began, &result);
        result
    }

    async fn jwt(
        &self,
        workload: &Workload,
        tokens: &[Token],
        identity: &Identity,
        audience: &str,
    ) -> Result<JwtSvid, Error> {
        let began = self.clock.now();
        let result = self.sources.jwt(workload, tokens, identity, audience).await;
        self.identity(began, &result);
        result
    }

    fn hint(&self, store: &str) -> Option<Arc<str>> {
        self.sources.hint(store)
    }

    fn subscribe(&self, workload: &Workload) -> Subscription {
        self.sources.subscribe(workload)
    }

    async fn stale(&self) -> Stale {
        let stale = self.sources.stale().await;
        let store = stale.source.store.to_string();
        self.metrics.told.get_or_create(&Store { store }).inc();
        stale
    }

    async fn changed(&self) -> Push {
        let push = self.sources.changed().await;
        let result = if push.svid.is_some() { "ok" } else { "withdrawn" };
        self.metrics.pushes.get_or_create(&Outcome { result }).inc();
        push
    }

    async fn fetch(&self, ask: Ask<'_>, held: &mut Option<Held>) -> Result<Answer, Error> {
        let began = self.clock.now();
        let result = self.sources.fetch(ask, held).await;
        let store = ask.source.store.to_string();
        let took = (self.clock.now() - began).as_secs_f64();
        self.metrics.fetch_seconds.get_or_create(&Store { store: store.clone() }).observe(took);
        let result_word = word(result.as_ref().map(|_| ()));
        self.metrics.fetches.get_or_create(&StoreOutcome { store, result: result_word }).inc();
        result
    }

    async fn run(&self, shutdown: &CancellationToken) {
        self.sources.run(shutdown).await;
    }

    fn reached(&self) -> Result<(), String> {
        self.sources.reached()
    }

    fn replicas(&self) -> Option<Standing> {
        self.sources.replicas()
    }

    fn roots(&self) -> Option<watch::Receiver<Roots>> {
        self.sources.roots()
    }
}
