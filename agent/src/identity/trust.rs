//! The roots the issuer is known by: from a file that others replace, or from the `ConfigMap` its replicas publish.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::clock::Clock;
use crate::identity::Roots;
use crate::identity::channel::roots;
use crate::identity::reread::{Reread, RereadError};
use crate::kubernetes::{Api, ApiError, ConfigMap, Look, ObjectName, follow};

/// The key of the `ConfigMap` that holds the roots as PEM.
pub(crate) const PEM_KEY: &str = "bundle.pem";
/// How often the `ConfigMap` is asked for outside its watch.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Roots, and the text they were read from, which tells whether they changed.
pub(crate) struct Bundle {
    pem: Vec<u8>,
    pub(crate) roots: RootCertStore,
    der: Roots,
    /// When the last of them ends, Unix seconds.
    ends: i64,
}

impl Bundle {
    fn parse(pem: &[u8]) -> Result<Self, String> {
        let store = roots(pem)?;
        // Whatever is no certificate was refused above.
        let der: Vec<Vec<u8>> =
            CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).map(|der| der.to_vec()).collect();
        let end = |der: &Vec<u8>| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            Some(certificate.validity().not_after.timestamp())
        };
        let ends = der.iter().filter_map(end).max().unwrap_or(i64::MAX);
        Ok(Self { pem: pem.to_vec(), roots: store, der: Arc::new(der), ends })
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        self.pem == other.pem
    }
}

/// Why there are no roots.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum TrustError {
    /// The file.
    #[error("{0}; the issuer's --bundle-out writes it")]
    File(RereadError),
    /// The API server.
    #[error("trust bundle {object}: {error}{}", if error.is_forbidden() { "; the agent's service account needs the rights to get, list and watch it" } else { "" })]
    Api {
        /// Which.
        object: String,
        /// Why it can't be read.
        error: ApiError,
    },
    /// There were roots, and their time is over.
    #[error(
        "trust bundle {place}: every certificate in it has expired; a running issuer writes its own: look for one, and at \
         this node's clock"
    )]
    Ended {
        /// File or object.
        place: String,
    },
    /// The object or what is in it.
    #[error("trust bundle {object}: {problem}")]
    Object {
        /// Which.
        object: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Where the roots come from.
pub(crate) enum Trust {
    /// A file, read again when it changes; and the time.
    File(Reread<Bundle>, Clock),
    /// A `ConfigMap`, watched by [`Trust::run`].
    Watched(Watched),
}

/// A `ConfigMap` that is watched.
pub(crate) struct Watched {
    api: Arc<Api>,
    object: ObjectName,
    /// The last good roots; an error while there never were any.
    latest: watch::Sender<Option<Result<Arc<Bundle>, TrustError>>>,
    roots: watch::Sender<Roots>,
    asked: Mutex<Option<Instant>>,
}

impl Trust {
    /// By a file.
    pub(crate) fn file(path: PathBuf, clock: Clock) -> Self {
        Self::File(Reread::new("trust bundle", path, clock, Bundle::parse), clock)
    }

    /// By the API server.
    pub(crate) fn watched(api: Arc<Api>, object: ObjectName) -> Self {
        Self::Watched(Watched {
            api,
            object,
            latest: watch::Sender::new(None),
            roots: watch::Sender::default(),
            asked: Mutex::default(),
        })
    }

    /// Keeps the roots up to date until `shutdown`.
    pub(crate) async fn run(&self, shutdown: &CancellationToken) {
        match self {
            // It is looked at when it is used.
            Self::File(..) => shutdown.cancelled().await,
            Self::Watched(watched) => {
                follow(&watched.api, &watched.object, shutdown, |look| watched.saw(look)).await;
            }
        }
    }

    /// The roots as they are now, or were when they were last good. The first ones are waited for.
    pub(crate) async fn current(&self) -> Result<Arc<Bundle>, TrustError> {
        let (bundle, clock, place) = match self {
            Self::File(file, clock) => {
                let bundle = file.current().await.map_err(TrustError::File)?;
                (bundle, clock, file.path().display().to_string())
            }
            Self::Watched(watched) => {
                let mut latest = watched.latest.subscribe();
                let known = latest.wait_for(Option::is_some).await.ok().and_then(|known| known.clone());
                // The sender lives as long as `self`.
                let bundle = known.unwrap_or_else(|| Err(watched.wrong("is not read yet")))?;
                (bundle, &watched.api.clock(), watched.object.to_string())
            }
        };
        // Said here, for what the TLS library says of it is that the issuer is a stranger.
        if bundle.ends <= clock.unix() { Err(TrustError::Ended { place }) } else { Ok(bundle) }
    }

    /// The roots as the watch brings them, none at first.
    pub(crate) fn roots(&self) -> Option<watch::Receiver<Roots>> {
        match self {
            Self::File(..) => None,
            Self::Watched(watched) => Some(watched.roots.subscribe()),
        }
    }

    /// Looks for newer roots than the watch has brought, unless that was done just now. For whoever has met a
    /// stranger.
    pub(crate) async fn look_again(&self) {
        let Self::Watched(watched) = self else { return };
        let mut asked = watched.asked.lock().await;
        let now = watched.api.clock().now();
        if asked.is_some_and(|at| now.duration_since(at) < ASK_AGAIN) {
            return;
        }
        match watched.api.get::<ConfigMap>(&watched.object.path()).await {
            Ok(map) => watched.saw(Look::Is(map)),
            Err(error) if error.is_missing() => watched.saw(Look::Missing),
            Err(error) => watched.saw(Look::Failed(error)),
        }
        *asked = Some(watched.api.clock().now());
    }
}

impl Watched {
    fn saw(&self, look: Look<ConfigMap>) {
        let read = match look {
            Look::Is(map) => map.data.get(PEM_KEY).map_or_else(
                || Err(self.wrong(&format!("has no key {PEM_KEY} yet; the issuer writes it when it starts"))),
                |pem| {
                    Bundle::parse(pem.as_bytes())
                        .map_err(|problem| self.wrong(&format!("{PEM_KEY} {problem}")))
                },
            ),
            Look::Missing => Err(self.wrong("does not exist; the issuer's --bundle-configmap must name it")),
            Look::Failed(error) => Err(TrustError::Api { object: self.object.to_string(), error }),
        };
        self.latest.send_if_modified(|latest| match (read, &latest) {
            (Ok(new), Some(Ok(last))) if new.same(last) => false,
            (Ok(new), _) => {
                tracing::info!(object = %self.object, roots = new.roots.len(), "the trust bundle changed");
                self.roots.send_replace(Arc::clone(&new.der));
                *latest = Some(Ok(Arc::new(new)));
                true
            }
            // Whoever was trusted is trusted until somebody says otherwise.
            (Err(problem), Some(Ok(_))) => {
                tracing::warn!(%problem, "going on with the last good trust bundle");
                false
            }
            (Err(problem), _) => {
                tracing::warn!(%problem, "there is no trust bundle yet");
                *latest = Some(Err(problem));
                true
            }
        });
    }

    fn wrong(&self, problem: &str) -> TrustError {
        TrustError::Object { object: self.object.to_string(), problem: problem.to_owned() }
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file, _) => write!(f, "Trust({})", file.path().display()),
            Self::Watched(watched) => write!(f, "Trust({})", watched.object),
        }
    }
}
