//! Listening, serving, and the upkeep of keys and certificate meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use countersign_proto::issuer::issuer_server::IssuerServer;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::identity::svid::unix;
use crate::issuer::Error;
use crate::issuer::admit::Gate;
use crate::issuer::bundle;
use crate::issuer::config::{Config, ReviewerConfig};
use crate::issuer::documents::{Documents, documents, webhook, with_health};
use crate::issuer::health::Health;
use crate::issuer::inject::configuration::WebhookConfiguration;
use crate::issuer::keys::Keys;
use crate::issuer::kubernetes::Kubernetes;
use crate::issuer::metrics::Metrics;
use crate::issuer::offline::Offline;
use crate::issuer::publication::Publication;
use crate::issuer::remembered::Reviews;
use crate::issuer::review::Reviewer;
use crate::issuer::service::Service;
use crate::issuer::tls::{ServingCertificate, server_config};
use crate::kubernetes::Api;

/// Connections at once on each address: a few per node of a large cluster.
const MAX_CONNECTIONS: usize = 2048;
/// How long a TLS handshake, or the head of a request, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long calls under way may go on after the shutdown.
const GRACE: Duration = Duration::from_secs(5);
/// Upkeep looks at the clock at least this often, for the wall clock may jump.
const UPKEEP: Duration = Duration::from_secs(30);
/// The longest message: two tokens, a CSR and a ticket.
const MAX_MESSAGE: usize = 64 * 1024;

/// An issuer that listens and does not serve yet.
pub struct Bound {
    config: Arc<Config>,
    keys: Arc<Keys>,
    certificate: Arc<ServingCertificate>,
    tls: TlsAcceptor,
    listener: TcpListener,
    http_listener: TcpListener,
    app: Router,
    http_app: Router,
    reviews: Arc<Reviews>,
    publication: Option<Arc<Publication>>,
    configuration: Option<WebhookConfiguration>,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Bound {
    /// Reads or makes the keys, writes the bundle, and binds both addresses.
    pub async fn new(config: Config) -> Result<Self, Error> {
        let config = Arc::new(config);
        let keys = Arc::new(Keys::new(&config, config.clock.wall())?);
        let metrics = Arc::new(Metrics::new());
        let hosts = config.inject.as_ref().map(|inject| inject.hosts.clone()).unwrap_or_default();
        let certificate =
            Arc::new(ServingCertificate::new(Arc::clone(&keys), config.trust_domain.clone(), hosts));
        certificate.renew(config.clock.wall())?;
        let tls = TlsAcceptor::from(Arc::new(server_config(Arc::clone(&certificate), config.clock)?));
        let listener = listen(config.listen).await?;
        let http_listener = listen(config.http_listen).await?;
        // After binding: who sees the file may connect.
        write_bundle(&config, &keys)?;
        let asks = matches!(config.reviewer, ReviewerConfig::Kubernetes(_));
        let health = Arc::new(Health::new(config.publication.is_some(), asks));
        let state = Arc::new(Documents {
            config: Arc::clone(&config),
            keys: Arc::clone(&keys),
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
        });
        let publication = publication(&config, &keys, &health);
        let reviews = Arc::new(Reviews::new(reviewer(&config), config.clock, Arc::clone(&metrics), health));
        let service = Service {
            gate: Gate {
                reviews: Arc::clone(&reviews),
                keys: Arc::clone(&keys),
                publication: publication.clone(),
                agent: config.agent.clone(),
                trust_domain: config.trust_domain.clone(),
                renew_without_token: config.renew_without_token,
                clock: config.clock,
            },
            config: Arc::clone(&config),
            keys: Arc::clone(&keys),
            metrics,
        };
        let grpc = IssuerServer::new(service).max_decoding_message_size(MAX_MESSAGE);
        let mut app = Routes::new(grpc).into_axum_router().merge(documents(Arc::clone(&state)));
        if config.inject.is_some() {
            app = app.merge(webhook());
        }
        let configuration = configuration(&config, &keys);
        Ok(Self {
            config,
            keys,
            certificate,
            tls,
            listener,
            http_listener,
            app,
            http_app: with_health(state),
            reviews,
            publication,
            configuration,
        })
    }

    /// Where gRPC and the documents are, over TLS.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Where documents, health and metrics are, in plain HTTP.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_listener.local_addr().ok()
    }

    /// Serves until `shutdown`; calls under way get five seconds to end.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let now = self.config.clock.wall();
        tracing::info!(
            trust_domain = %self.config.trust_domain,
            address = ?self.address(),
            http_address = ?self.http_address(),
            root_ends_at = self.keys.latest(now).map(|generation| unix(generation.root.not_after)),
            "the issuer is serving"
        );
        let tasks = TaskTracker::new();
        let secure = Listening {
            tls: Some(self.tls),
            app: self.app,
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        let plain =
            Listening { tls: None, app: self.http_app, tasks: tasks.clone(), shutdown: shutdown.clone() };
        tokio::join!(
            secure.accept(self.listener),
            plain.accept(self.http_listener),
            upkeep(&self.config, &self.keys, &self.certificate, &shutdown),
            self.reviews.watch_over(&shutdown),
            async {
                if let Some(publication) = &self.publication {
                    publication.run(&shutdown).await;
                }
            },
            async {
                if let Some(configuration) = &self.configuration {
                    configuration.run(&shutdown).await;
                }
            },
        );
        tasks.close();
        tasks.wait().await;
        tracing::info!("the issuer has stopped");
        Ok(())
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

fn write_bundle(config: &Config, keys: &Keys) -> Result<(), Error> {
    let Some(path) = &config.bundle_out else { return Ok(()) };
    bundle::write(keys, path).map_err(|source| Error::BundleOut { path: path.clone(), source })
}

fn reviewer(config: &Config) -> Reviewer {
    let (clock, audience) = (config.clock, config.audience.clone());
    match &config.reviewer {
        ReviewerConfig::Jwks { file, issuer } => {
            let offline = Offline::new(file.clone(), issuer.clone(), audience, clock);
            Reviewer::Offline(Box::new(offline))
        }
        ReviewerConfig::Kubernetes(server) => {
            let kubernetes = Kubernetes::new(Arc::new(Api::new(server.clone(), clock)), audience);
            Reviewer::Kubernetes(Box::new(kubernetes))
        }
    }
}

fn publication(config: &Config, keys: &Arc<Keys>, health: &Arc<Health>) -> Option<Arc<Publication>> {
    let publication = config.publication.clone()?;
    let api = Arc::new(Api::new(publication.server.clone(), config.clock));
    let longest = config.x509_ttl.max(config.jwt_ttl);
    let domain = config.trust_domain.clone();
    Some(Arc::new(Publication::new(publication, api, longest, domain, Arc::clone(keys), Arc::clone(health))))
}

fn configuration(config: &Config, keys: &Arc<Keys>) -> Option<WebhookConfiguration> {
    let (server, object) = config.inject.as_ref()?.configuration.clone()?;
    Some(WebhookConfiguration::new(Arc::new(Api::new(server, config.clock)), object, Arc::clone(keys)))
}

/// Rotates keys and certificate as their time comes. What fails is tried again: everything in use is good for
/// days, and for half an hour in the certificate's case.
async fn upkeep(
    config: &Config,
    keys: &Keys,
    certificate: &ServingCertificate,
    shutdown: &CancellationToken,
) {
    let mut unwritten = false;
    let mut revisions = keys.revisions();
    let mut roots = keys.roots();
    loop {
        let next = keys.next_change().map(|at| config.clock.instant_of(at));
        let look = config.clock.now() + UPKEEP;
        tokio::select! {
            () = shutdown.cancelled() => return,
            // The sender lives as long as the keys do.
            _ = revisions.changed() => {}
            () = tokio::time::sleep_until(next.map_or(look, |next| next.min(look))) => {}
        }
        let now = config.clock.wall();
        if let Err(error) = keys.advance(now) {
            tracing::error!(%error, "the next root could not be made");
        }
        revisions.mark_unchanged();
        let latest = keys.roots();
        if roots != latest {
            tracing::info!(roots = latest.len(), "the bundle changed");
            roots = latest;
            unwritten = true;
        }
        if unwritten {
            match write_bundle(config, keys) {
                Ok(()) => unwritten = false,
                Err(error) => tracing::error!(%error, "trying again"),
            }
        }
        if let Err(error) = certificate.renew(now) {
            tracing::error!(%error, "the serving certificate could not be renewed");
        }
    }
}

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

#[derive(Clone)]
struct Listening {
    tls: Option<TlsAcceptor>,
    app: Router,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Listening {
    async fn accept(self, listener: TcpListener) {
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
