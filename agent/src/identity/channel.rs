//! TLS to the issuer: whom to trust, under which name, by which clock.

use std::fmt;
use std::net::SocketAddr;
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
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::clock::Clock;
use crate::identity::X509Svid;

/// The name in the issuer's serving certificate, whatever address it is reached at.
pub(crate) const SERVER_NAME: &str = "countersign-issuer";
/// How long connecting and the TLS handshake may take together.
pub(crate) const CONNECT: Duration = Duration::from_secs(3);
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

/// Connects to replicas of the issuer.
#[derive(Clone)]
pub(crate) struct Dialer(TlsConnector);

impl Dialer {
    /// Trusts `roots` alone.
    pub(crate) fn new(roots: RootCertStore, clock: Clock) -> Result<Self, rustls::Error> {
        let mut config = client_config(roots, clock)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// A connection to one replica: it is whom it should be.
    pub(crate) async fn dial(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let dialing = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            self.0.connect(name, stream).await
        };
        tokio::time::timeout(CONNECT, dialing).await.unwrap_or_else(|_| {
            let problem = format!("no connection within {} s", CONNECT.as_secs());
            Err(std::io::Error::new(std::io::ErrorKind::TimedOut, problem))
        })
    }

    /// A channel to one replica. It connects on first use and again after every failure.
    pub(crate) fn channel(&self, address: SocketAddr) -> Channel {
        let dialer = self.clone();
        Endpoint::from(Uri::from_static("http://countersign-issuer"))
            .origin(Uri::from_static("https://countersign-issuer"))
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(CONNECT)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let dialer = dialer.clone();
                async move { dialer.dial(address).await.map(TokioIo::new) }
            }))
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

/// The last cause of an error: "connection refused" says more than "transport error". `clocks` says whose clocks to
/// compare when it is about time.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static), clocks: &str) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    let text = last.to_string();
    // The TLS library compares with our clock, and that may be the wrong one.
    let timely = ["not valid yet", "expired"].iter().any(|word| text.contains(word));
    if timely && text.contains("certificate") { format!("{text}; compare the clocks {clocks}") } else { text }
}
