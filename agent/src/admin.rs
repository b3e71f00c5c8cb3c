//! `/healthz`, `/readyz` and `/metrics` over HTTP. Nothing secret is served here.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::keeper::Handle;
use crate::metrics::Metrics;
use crate::sources::Sources;
use crate::turn::World;

/// A probe waits no longer than this for an answer from inside.
const PATIENCE: Duration = Duration::from_secs(2);
/// The media type of the OpenMetrics text format.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the answers are made from.
#[derive(Debug)]
pub struct Admin<S> {
    /// The keeper, asked whether it lives.
    pub keeper: Handle,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The cache and the clock.
    pub world: Arc<World<S>>,
    /// The driver's status socket.
    pub driver_status: PathBuf,
}

/// The line the driver's status socket answers with, as far as it is read here.
#[derive(Debug, Deserialize)]
struct DriverStatus {
    registered: bool,
    #[serde(default)]
    registration_error: Option<String>,
    #[serde(default)]
    standing_by: Option<String>,
}

impl DriverStatus {
    /// Why kubelet does not come to this driver.
    fn trouble(&self) -> Option<String> {
        match self {
            Self { registered: true, .. } => None,
            Self { standing_by: Some(reason), .. } => Some(reason.clone()),
            Self { registration_error: Some(error), .. } => Some(format!("kubelet refused it: {error}")),
            Self { .. } => Some("kubelet has not registered the driver yet".to_owned()),
        }
    }
}

impl<S: Sources> Admin<S> {
    /// Serves `listener` until `shutdown`.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
        let router = Router::new()
            .route("/healthz", get(healthz::<S>))
            .route("/readyz", get(readyz::<S>))
            .route("/metrics", get(metrics::<S>))
            .with_state(Arc::new(self));
        axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
    }
}

/// Alive: the keeper takes commands. A store or issuer that is down must not restart the agent.
async fn healthz<S: Sources>(State(admin): State<Arc<Admin<S>>>) -> Response {
    match tokio::time::timeout(PATIENCE, admin.keeper.ping()).await {
        Ok(Ok(())) => (StatusCode::OK, "ok\n").into_response(),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "the keeper does not answer\n").into_response(),
    }
}

/// Ready: alive, kubelet has registered the driver beside us, and the source of identities was reached: one replica of the
/// issuer is enough. A line for each check says what is missing.
async fn readyz<S: Sources>(State(admin): State<Arc<Admin<S>>>) -> Response {
    let keeper = matches!(tokio::time::timeout(PATIENCE, admin.keeper.ping()).await, Ok(Ok(())));
    let driver = driver_status(&admin.driver_status).await;
    let mut body = String::new();
    let mut ready = true;
    let mut check = |name: &str, trouble: Option<String>| {
        ready &= trouble.is_none();
        let line =
            trouble.map_or_else(|| format!("[+] {name}\n"), |trouble| format!("[-] {name}: {trouble}\n"));
        body.write_str(&line).unwrap_or_default();
    };
    check("keeper", (!keeper).then(|| "does not answer".to_owned()));
    check("driver", driver.as_ref().err().map(|error| format!("status socket: {error}")));
    check(
        "registration",
        match &driver {
            Ok(status) => status.trouble(),
            Err(_) => Some("unknown without the driver".to_owned()),
        },
    );
    check("issuer", admin.world.sources.reached().err());
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, body).into_response()
}

async fn metrics<S: Sources>(State(admin): State<Arc<Admin<S>>>) -> Response {
    let driver = driver_status(&admin.driver_status).await;
    admin.metrics.driver(driver.is_ok(), driver.is_ok_and(|status| status.registered));
    admin.metrics.source(admin.world.sources.reached().is_ok());
    admin.metrics.replicas(admin.world.sources.replicas());
    admin.metrics.cache(&admin.world.cache);
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn driver_status(socket: &Path) -> io::Result<DriverStatus> {
    let read = async {
        let mut line = Vec::new();
        UnixStream::connect(socket).await?.take(64 << 10).read_to_end(&mut line).await?;
        serde_json::from_slice(&line).map_err(io::Error::from)
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_says_of_its_registration() {
        let trouble = |line: &str| serde_json::from_str::<DriverStatus>(line).unwrap().trouble();
        assert_eq!(trouble(r#"{"registered": true, "registration_error": null, "standing_by": null}"#), None);
        // The line of a driver that is older than the field.
        let waits = trouble(r#"{"registered": false, "volumes": 0}"#);
        assert_eq!(waits.as_deref(), Some("kubelet has not registered the driver yet"));
        let refused = trouble(r#"{"registered": false, "registration_error": "no"}"#);
        assert_eq!(refused.as_deref(), Some("kubelet refused it: no"));
        let second = trouble(r#"{"registered": false, "standing_by": "another driver"}"#);
        assert_eq!(second.as_deref(), Some("another driver"));
    }
}
