//! The documents and the state of health, over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::issuer::bundle;
use crate::issuer::config::Config;
use crate::issuer::health::Health;
use crate::issuer::inject;
use crate::issuer::keys::Keys;
use crate::issuer::metrics::Metrics;

/// The longest review: a pod and what it was before, each of at most 1.5 MiB in etcd.
const MAX_REVIEW: usize = 4 << 20;

/// What the documents are made of.
pub(crate) struct Documents {
    pub(crate) config: Arc<Config>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
}

/// Bundle, keys and discovery.
pub(crate) fn documents(documents: Arc<Documents>) -> Router {
    Router::new()
        .route("/bundle", get(spiffe_bundle))
        .route("/keys", get(key_set))
        .route("/.well-known/openid-configuration", get(discovery))
        .with_state(documents)
}

/// The mutating webhook.
pub(crate) fn webhook() -> Router {
    Router::new().route("/inject", post(injected)).layer(DefaultBodyLimit::max(MAX_REVIEW))
}

async fn injected(review: Bytes) -> Response {
    match inject::answer(&review) {
        Some(answer) => ([(CONTENT_TYPE, "application/json")], answer.to_string()).into_response(),
        None => {
            (StatusCode::BAD_REQUEST, "this is no AdmissionReview of admission.k8s.io/v1\n").into_response()
        }
    }
}

/// The same and health and metrics, which are for inside the cluster.
pub(crate) fn with_health(state: Arc<Documents>) -> Router {
    let health = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Arc::clone(&state));
    documents(state).merge(health)
}

fn json(document: &serde_json::Value) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "max-age=60")];
    (headers, document.to_string()).into_response()
}

async fn spiffe_bundle(State(state): State<Arc<Documents>>) -> Response {
    let (anchors, sequence) = state.keys.bundle();
    json(&bundle::spiffe(&anchors, sequence))
}

async fn key_set(State(state): State<Arc<Documents>>) -> Response {
    json(&bundle::key_set(&state.keys.bundle().0))
}

async fn discovery(State(state): State<Arc<Documents>>) -> Response {
    match &state.config.oidc_issuer {
        Some(issuer) => json(&bundle::discovery(issuer)),
        None => (StatusCode::NOT_FOUND, "no OIDC issuer is configured; set --oidc-issuer\n").into_response(),
    }
}

/// Ready: a root that has not ended, keys that are published, tokens that can be reviewed. A line for each.
async fn ready(State(state): State<Arc<Documents>>) -> Response {
    let now = state.config.clock.wall();
    let root = match state.keys.latest(now) {
        Some(generation) if generation.root.not_after > now => Ok(()),
        Some(_) => Err("the root certificate has ended".to_owned()),
        None => Err("none is published".to_owned()),
    };
    let (ready, report) = state.health.report(&root);
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, report).into_response()
}

async fn metrics(State(state): State<Arc<Documents>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], state.metrics.text()).into_response()
}
