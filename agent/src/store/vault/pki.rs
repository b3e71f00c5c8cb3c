//! Certificates whose key is made here and never leaves the node.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rand::Rng;
use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};

use super::document::number;
use super::wanted::Wanted;
use crate::Error;
use crate::identity::key::PrivateKey;
use crate::identity::svid::unix;
use crate::render::pem::{private_key, signing_request};
use crate::secret::{Node, Secret};

/// A key and the request for its certificate.
pub(super) struct Signing {
    key: PrivateKey,
    /// PEM.
    pub(super) csr: String,
}

impl Signing {
    /// A new P-256 key, and a request with the names in the parameters: a role takes them from the request or from the
    /// parameters, as `use_csr_common_name` and `use_csr_sans` say, and so both have them.
    pub(super) fn new(wanted: &Wanted) -> Result<Self, Error> {
        let fail = |problem: String| Error::request(wanted.reference.clone(), problem);
        let parameter = |name: &str| wanted.parameters.get(name).map(String::as_str);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = parameter("common_name") {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        for (parameter_name, read) in [
            ("alt_names", alternative as fn(&str) -> Option<SanType>),
            ("ip_sans", |text| text.parse::<IpAddr>().ok().map(SanType::IpAddress)),
            ("uri_sans", |text| text.try_into().ok().map(SanType::URI)),
        ] {
            let values = parameter(parameter_name).unwrap_or_default();
            for value in values.split(',').map(str::trim).filter(|value| !value.is_empty()) {
                let name = read(value).ok_or_else(|| {
                    fail(format!("{parameter_name}: {value:?} cannot stand in a certificate"))
                })?;
                params.subject_alt_names.push(name);
            }
        }
        let key = PrivateKey::generate().map_err(|problem| fail(problem.to_string()))?;
        let csr = params
            .serialize_request(&key)
            .map_err(|problem| fail(format!("no signing request could be made: {problem}")))?;
        let csr = String::from_utf8_lossy(signing_request(csr.der()).expose()).into_owned();
        Ok(Self { key, csr })
    }

    /// The server's `data` with the key beside it.
    pub(super) fn finish(self, document: Node) -> Result<Node, Error> {
        let unusable = |problem: &str| Error::Unusable { store: String::new(), problem: problem.to_owned() };
        let Node::Map(mut members) = document else {
            return Err(unusable("the answer to a signing request is no object"));
        };
        let key = self.key.to_pkcs8().map_err(|problem| unusable(&problem.to_string()))?;
        members.insert("private_key".to_owned(), Node::Text(private_key(&key)));
        members.insert("private_key_type".to_owned(), Node::Text(Secret::from("ec".to_owned())));
        Ok(Node::Map(members))
    }
}

/// A DNS name or an e-mail address.
fn alternative(text: &str) -> Option<SanType> {
    let name = text.try_into().ok()?;
    Some(if text.contains('@') { SanType::Rfc822Name(name) } else { SanType::DnsName(name) })
}

/// How long a certificate is good for before another is made: about two thirds of what is left of it.
pub(super) fn renew_in(document: &Node, wall: SystemTime) -> Option<Duration> {
    let ends = i64::try_from(number(document, "expiration")?).ok()?;
    let left = u64::try_from(ends.saturating_sub(unix(wall))).ok()?;
    Some(Duration::from_secs(left).mul_f64(rand::rng().random_range(0.6..=0.7)))
}
