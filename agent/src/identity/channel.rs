//! The one connection to the issuer: TLS whose roots are the bundle file's, made again when they change.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::clock::Clock;
use crate::identity::X509Svid;
use crate::identity::reread::{Reread, RereadError};

/// The name in the issuer's serving certificate, whatever address it is reached at.
pub(crate) const SERVER_NAME: &str = "countersign-issuer";
/// How long connecting and the TLS handshake may take together.
const CONNECT: Duration = Duration::from_secs(5);
/// How often an idle connection is tried, so that a dead one is found before it is needed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Time for the TLS library, from our clock.
#[derive(Debug)]
pub(crate) struct TlsTime(pub(crate) Clock);

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.wall().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// Reads the certificates of a PEM file as roots.
pub(crate) fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate =
            certificate.map_err(|_| "is no PEM: the roots as CERTIFICATE blocks are expected")?;
        roots.add(certificate).map_err(|_| "holds a certificate that can't be a root")?;
    }
    if roots.is_empty() {
        return Err("holds no CERTIFICATE block: the roots of the trust domain are expected".to_owned());
    }
    Ok(roots)
}

/// A client's TLS configuration that trusts `roots` alone.
pub(crate) fn client_config(roots: RootCertStore, clock: Clock) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_details(Arc::new(default_provider()), Arc::new(TlsTime(clock)))
        .with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// A client's TLS configuration that trusts `roots` alone and shows `svid`.
pub(crate) fn client_config_as(
    roots: RootCertStore,
    svid: &X509Svid,
    clock: Clock,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_details(Arc::new(default_provider()), Arc::new(TlsTime(clock)))
        .with_safe_default_protocol_versions()?;
    let chain = svid.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivatePkcs8KeyDer::from(svid.key.expose().to_vec());
    builder.with_root_certificates(roots).with_client_auth_cert(chain, key.into())
}

/// The bundle file, parsed; the text tells whether it changed.
struct Bundle {
    pem: Vec<u8>,
    roots: RootCertStore,
}

/// A lazily connected channel, and the state of the bundle it trusts.
struct Connected {
    bundle: Arc<Bundle>,
    channel: Channel,
}

/// Hands out the channel to the issuer.
pub(crate) struct IssuerChannel {
    address: String,
    bundle: Reread<Bundle>,
    clock: Clock,
    connected: Mutex<Option<Connected>>,
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// The bundle file.
    #[error("{0}; the issuer's --bundle-out writes it")]
    Bundle(RereadError),
    /// The address.
    #[error("the issuer's address {address} is not HOST:PORT")]
    Address {
        /// As it was given.
        address: String,
    },
    /// The TLS library's refusal.
    #[error("TLS can't be configured: {0}")]
    Tls(rustls::Error),
}

impl IssuerChannel {
    pub(crate) fn new(address: String, bundle: PathBuf, clock: Clock) -> Self {
        let bundle = Reread::new("trust bundle", bundle, clock, |pem| {
            Ok(Bundle { pem: pem.to_vec(), roots: roots(pem)? })
        });
        Self { address, bundle, clock, connected: Mutex::new(None) }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The channel. It connects on first use and again after every failure; a changed bundle makes a new one, and
    /// calls under way on the old one go on.
    pub(crate) async fn channel(&self) -> Result<Channel, ChannelError> {
        let bundle = self.bundle.current().await.map_err(ChannelError::Bundle)?;
        let mut connected = self.connected.lock().await;
        if let Some(last) = &*connected
            && last.bundle.pem == bundle.pem
        {
            return Ok(last.channel.clone());
        }
        if connected.is_some() {
            tracing::info!(bundle = %self.bundle.path().display(), "the trust bundle changed, connecting anew");
        }
        let channel = self.connect(bundle.roots.clone())?;
        *connected = Some(Connected { bundle, channel: channel.clone() });
        Ok(channel)
    }

    fn connect(&self, roots: RootCertStore) -> Result<Channel, ChannelError> {
        let address = || ChannelError::Address { address: self.address.clone() };
        let mut config = client_config(roots, self.clock).map_err(ChannelError::Tls)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsConnector::from(Arc::new(config));
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).map_err(|_| address())?;
        if endpoint.uri().port_u16().is_none() {
            return Err(address());
        }
        let endpoint = endpoint
            .origin(Uri::from_static("https://countersign-issuer"))
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(CONNECT);
        let address: Arc<str> = self.address.as_str().into();
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let (tls, address) = (tls.clone(), Arc::clone(&address));
            async move { dial(&tls, &address).await.map(TokioIo::new) }
        })))
    }
}

async fn dial(tls: &TlsConnector, address: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    let stream = TcpStream::connect(addresses.as_slice()).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
    tls.connect(name, stream).await
}

impl fmt::Debug for IssuerChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IssuerChannel({})", self.address)
    }
}
