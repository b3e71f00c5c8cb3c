//! Listening, serving, and the upkeep of keys and certificate meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use countersign_proto::issuer::issuer_server::IssuerServer;
use tokio::net::TcpListener;
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
use crate::issuer::listening::Listening;
use crate::issuer::metrics::Metrics;
use crate::issuer::offline::Offline;
use crate::issuer::publication::Publication;
use crate::issuer::remembered::Reviews;
use crate::issuer::review::Reviewer;
use crate::issuer::service::Service;
use crate::issuer::tls::{ServingCertificate, server_config};
use crate::kubernetes::{Api, Caller};

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
        let publication = publication(&config, &keys, &health, &metrics);
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
            let kubernetes =
                Kubernetes::new(Arc::new(Api::new(server.clone(), Caller::Issuer, clock)), audience);
            Reviewer::Kubernetes(Box::new(kubernetes))
        }
    }
}

fn publication(
    config: &Config,
    keys: &Arc<Keys>,
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
) -> Option<Arc<Publication>> {
    let publication = config.publication.clone()?;
    let api = Arc::new(Api::new(publication.server.clone(), Caller::Issuer, config.clock));
    let longest = config.x509_ttl.max(config.jwt_ttl);
    let domain = config.trust_domain.clone();
    Some(Arc::new(Publication::new(
        publication,
        api,
        longest,
        domain,
        Arc::clone(keys),
        Arc::clone(health),
        Arc::clone(metrics),
    )))
}

fn configuration(config: &Config, keys: &Arc<Keys>) -> Option<WebhookConfiguration> {
    let (server, object) = config.inject.as_ref()?.configuration.clone()?;
    Some(WebhookConfiguration::new(
        Arc::new(Api::new(server, Caller::Issuer, config.clock)),
        object,
        Arc::clone(keys),
    ))
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
