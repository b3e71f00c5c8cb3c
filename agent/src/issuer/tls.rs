//! The issuer's own certificate: by its own root, under one name whatever the address, renewed at half of its life.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rcgen::SanType;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{default_provider, sign::any_ecdsa_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::clock::Clock;
use crate::identity::channel::{SERVER_NAME, TlsTime};
use crate::identity::key::PrivateKey;
use crate::issuer::Error;
use crate::issuer::config::WebhookHost;
use crate::issuer::keys::Keys;
use crate::issuer::root::uri;
use crate::issuer::sign::{Requested, leaf};
use crate::spiffe::TrustDomain;

/// Life of the serving certificate.
const LIFE: Duration = Duration::from_secs(3600);

struct Current {
    key: Arc<CertifiedKey>,
    /// DER of the root that signed it.
    root: Vec<u8>,
    renew_at: SystemTime,
}

/// Holds the serving certificate and makes the next one.
pub(crate) struct ServingCertificate {
    keys: Arc<Keys>,
    trust_domain: TrustDomain,
    /// Names beside the issuer's own.
    hosts: Vec<WebhookHost>,
    current: RwLock<Option<Current>>,
}

impl ServingCertificate {
    pub(crate) fn new(keys: Arc<Keys>, trust_domain: TrustDomain, hosts: Vec<WebhookHost>) -> Self {
        Self { keys, trust_domain, hosts, current: RwLock::default() }
    }

    /// Makes a certificate if there is none, the last is past half of its life, or another root signs now.
    pub(crate) fn renew(&self, now: SystemTime) -> Result<(), Error> {
        let generation = self.keys.latest(now).ok_or_else(|| Error::Root("none is left".to_owned()))?;
        let good = |current: &Current| current.renew_at > now && current.root == generation.root.der;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(good) {
            return Ok(());
        }
        let unmade = |problem: &dyn fmt::Display| Error::Root(problem.to_string());
        let key = PrivateKey::generate().map_err(|error| unmade(&error))?;
        let requested = Requested::of(&key.public_key_info()).ok_or_else(|| unmade(&"its key is odd"))?;
        let name = SERVER_NAME.try_into().map_err(|error: rcgen::Error| unmade(&error))?;
        let id = uri(&format!("spiffe://{}/countersign/issuer", self.trust_domain))?;
        let mut names = vec![SanType::DnsName(name), id];
        for host in &self.hosts {
            names.push(match host {
                WebhookHost::Address(address) => SanType::IpAddress(*address),
                WebhookHost::Name(name) => {
                    SanType::DnsName(name.as_str().try_into().map_err(|error: rcgen::Error| unmade(&error))?)
                }
            });
        }
        let signed =
            leaf(&generation.root, &requested, names, now, LIFE).map_err(|refusal| unmade(&refusal))?;
        let pkcs8 = key.to_pkcs8().map_err(|error| unmade(&error))?;
        let shown = any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.expose())))
            .map_err(Error::Tls)?;
        let life = signed.not_after.duration_since(now).unwrap_or_default();
        let current = Current {
            key: Arc::new(CertifiedKey::new(vec![CertificateDer::from(signed.der)], shown)),
            root: generation.root.der.clone(),
            renew_at: now + life / 2,
        };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(current);
        Ok(())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|current| Arc::clone(&current.key))
    }
}

impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServingCertificate({})", self.trust_domain)
    }
}

/// A TLS server that shows the serving certificate and speaks HTTP/2 and HTTP/1.1.
pub(crate) fn server_config(
    certificate: Arc<ServingCertificate>,
    clock: Clock,
) -> Result<ServerConfig, Error> {
    let time = Arc::new(TlsTime(clock));
    let mut config = ServerConfig::builder_with_details(Arc::new(default_provider()), time)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::svid::moment;
    use crate::issuer::tests::cluster::{Cluster, NOW};

    #[test]
    fn renewed_at_half_of_its_life_and_when_another_root_signs() {
        let config = Cluster::new().config();
        let keys = Arc::new(Keys::new(&config, moment(NOW)).unwrap());
        let serving = ServingCertificate::new(Arc::clone(&keys), config.trust_domain, Vec::new());
        let shown = || {
            let current = serving.current.read().unwrap();
            current.as_ref().map(|current| current.key.cert[0].to_vec())
        };
        let start = moment(NOW);
        serving.renew(start).unwrap();
        let first = shown();
        serving.renew(start + LIFE / 2 - Duration::from_secs(1)).unwrap();
        assert_eq!(shown(), first);
        serving.renew(start + LIFE / 2).unwrap();
        assert_ne!(shown(), first);
        let later = start + crate::issuer::root::LIFE / 2;
        serving.renew(later).unwrap();
        let before = shown();
        keys.advance(later).unwrap();
        serving.renew(later).unwrap();
        assert_eq!(shown(), before, "the successor is published, but does not sign yet");
        serving.renew(later + Duration::from_secs(3600)).unwrap();
        assert_ne!(serving.current.read().unwrap().as_ref().unwrap().root, keys.roots()[0]);
    }
}
