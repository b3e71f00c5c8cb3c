//! What the issuer counts.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::issuer::refusal::Refusal;

type Labels = [(&'static str, &'static str); 1];

/// Counters since the start, and the registry they are read from.
pub(crate) struct Metrics {
    registry: Registry,
    issued: Family<Labels, Counter>,
    refused: Family<Labels, Counter>,
    reviews: Family<Labels, Counter>,
    confirmed: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("countersign_issuer");
        let (issued, refused, reviews) = (Family::default(), Family::default(), Family::default());
        registry.register("svids_issued", "SVIDs issued", Family::clone(&issued));
        registry.register("calls_refused", "Calls refused, by reason", Family::clone(&refused));
        registry.register("token_reviews", "Token reviews made", Family::clone(&reviews));
        let confirmed = Gauge::default();
        registry.register(
            "bundle_confirmed_timestamp_seconds",
            "When the API server was last seen to have the trust bundle as it should be; 0: never",
            confirmed.clone(),
        );
        Self { registry, issued, refused, reviews, confirmed }
    }

    /// The trust bundle was seen as it should be, at this Unix time in seconds.
    pub(crate) fn confirmed(&self, at: i64) {
        self.confirmed.set(at);
    }

    pub(crate) fn issued(&self, kind: &'static str) {
        self.issued.get_or_create(&[("kind", kind)]).inc();
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.refused.get_or_create(&[("reason", refusal.label())]).inc();
    }

    pub(crate) fn reviewed(&self, good: bool) {
        self.reviews.get_or_create(&[("result", if good { "good" } else { "refused" })]).inc();
    }

    /// The `OpenMetrics` text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _written = encode(&mut text, &self.registry);
        text
    }
}
