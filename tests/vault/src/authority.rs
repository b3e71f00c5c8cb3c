//! A small certificate authority, for servers on loopback.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use countersign_tests::scratch::replace_file;

/// An authority and the key it signs with.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A server's certificate and key.
pub struct Certificate {
    pem: String,
    der: CertificateDer<'static>,
    key: KeyPair,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) })
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes its certificate for everybody to read.
    pub fn write(&self, file: &Path) -> Result<PathBuf> {
        replace_file(file, self.pem.as_bytes(), 0o644)?;
        Ok(file.to_owned())
    }

    /// A certificate for a server at these names; addresses are names too.
    pub fn certificate(&self, names: &[&str]) -> Result<Certificate> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Certificate { pem: certificate.pem(), der: certificate.der().clone(), key })
    }

    /// A certificate for a server at an address.
    pub fn certificate_at(&self, address: SocketAddr) -> Result<Certificate> {
        self.certificate(&[&address.ip().to_string(), "localhost"])
    }

    /// How a client that trusts this authority alone speaks TLS.
    pub fn client(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone())?;
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth())
    }
}

impl Certificate {
    /// Writes `<name>.crt` and `<name>.key` into a directory.
    pub fn write(&self, directory: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
        let (certificate, key) =
            (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        fs::write(&certificate, &self.pem).with_context(|| certificate.display().to_string())?;
        replace_file(&key, self.key.serialize_pem().as_bytes(), 0o600)?;
        Ok((certificate, key))
    }

    /// How a server with this certificate speaks TLS: HTTP/1.1 alone.
    pub fn server(&self) -> Result<ServerConfig> {
        self.server_for(WebPkiClientVerifier::no_client_auth())
    }

    /// The same for clients that show what `verifier` asks for.
    pub(crate) fn server_for(&self, verifier: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let mut config = builder
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.der.clone()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}
