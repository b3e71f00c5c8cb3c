//! mTLS to the broker socket: our own SVID on this side, the SPIRE agent's on the other, and nobody else's.

use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};

use crate::clock::Clock;
use crate::identity::X509Svid;
use crate::identity::channel::TlsTime;
use crate::identity::svid::{Broken, verify_peer};
use crate::spiffe::{SpiffeId, TrustDomain};

/// What every SPIRE agent's SPIFFE ID begins with, after the trust domain.
const AGENT_PATH: &str = "/spire/agent/";

/// A client's configuration that shows `own` and talks to SPIRE agents of its trust domain only.
pub(super) fn client_config(own: &X509Svid, clock: Clock) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(default_provider());
    let chain = own.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivatePkcs8KeyDer::from(own.key.expose().to_vec());
    let verifier = AgentOnly {
        roots: own.roots.clone(),
        domain: own.spiffe_id.trust_domain().clone(),
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(TlsTime(clock)))
        .with_safe_default_protocol_versions()?
        // "Dangerous" is to verify by other names than DNS ones, which is what SPIFFE does.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key.into())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    // SPIRE authorizes at each handshake; a resumed one would be none.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Why a peer is not talked to.
#[derive(Debug, thiserror::Error)]
enum Stranger {
    #[error("the server's X.509-SVID can't be used: {0}")]
    Broken(Broken),
    #[error("the server is {0}, which is no SPIRE agent: its path does not begin with {AGENT_PATH}")]
    NoAgent(SpiffeId),
}

/// Verifies that a server is a SPIRE agent of `domain`.
struct AgentOnly {
    roots: Vec<Vec<u8>>,
    domain: TrustDomain,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for AgentOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentOnly({})", self.domain)
    }
}

impl AgentOnly {
    fn check(&self, chain: &[Vec<u8>], now: UnixTime) -> Result<(), Stranger> {
        let now = UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        let peer = verify_peer(chain, &self.roots, &self.domain, now).map_err(Stranger::Broken)?;
        if peer.path().starts_with(AGENT_PATH) { Ok(()) } else { Err(Stranger::NoAgent(peer)) }
    }
}

impl ServerCertVerifier for AgentOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<Vec<u8>> =
            std::iter::once(end_entity).chain(intermediates).map(|der| der.to_vec()).collect();
        match self.check(&chain, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(stranger) => Err(CertificateError::Other(OtherError(Arc::new(stranger))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
