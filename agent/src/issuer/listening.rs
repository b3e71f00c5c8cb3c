//! Taking connections, serving them, and ending them with the process.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once on each address: a few per node of a large cluster.
const MAX_CONNECTIONS: usize = 2048;
/// How long a TLS handshake, or the head of a request, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long calls under way may go on after the shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// Tasks that hyper starts for us are ours to wait for.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// What is served on one address.
#[derive(Clone)]
pub(super) struct Listening {
    /// None: plain HTTP.
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) app: Router,
    /// Who waits for the connections.
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

impl Listening {
    /// Takes connections until the shutdown.
    pub(super) async fn accept(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = tokio::select! {
                () = self.shutdown.cancelled() => return,
                place = Arc::clone(&places).acquire_owned() => place,
            };
            // The semaphore is never closed.
            let Ok(place) = place else { return };
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    self.tasks.spawn(self.clone().connection(stream, place));
                }
                Err(error) => {
                    // Out of descriptors, most likely: they come back as connections end.
                    tracing::warn!(error = %error.kind(), "can't accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self, stream: TcpStream, _place: OwnedSemaphorePermit) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %error.kind(), "can't set nodelay");
        }
        let Some(tls) = &self.tls else { return self.http(stream, false).await };
        match tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                self.http(stream, h2).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    /// Serves one connection. The version is agreed on before, not guessed from the first bytes: who sends none
    /// would be waited for without end.
    async fn http(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, h2: bool) {
        let builder = auto::Builder::new(Tracked(self.tasks.clone()));
        let mut builder = if h2 { builder.http2_only() } else { builder.http1_only() };
        builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(512)
            .keep_alive_interval(Some(Duration::from_secs(60)))
            .keep_alive_timeout(PATIENCE);
        let service = TowerToHyperService::new(self.app.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let end = tokio::select! {
            end = connection.as_mut() => end,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(GRACE, connection).await {
                    Ok(end) => end,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = end {
            tracing::debug!(%error, "a connection broke off");
        }
    }
}
