//! What everybody may know of a generation of keys: its root certificate and its public JWT key. Replicas tell each
//! other through these.

use std::time::SystemTime;

use jsonwebtoken::DecodingKey;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::identity::svid::{Broken, check_authority, moment};
use crate::issuer::bundle::certificate_pem;
use crate::issuer::jwt::{JwtKey, PublicJwk};
use crate::issuer::root::Root;
use crate::spiffe::TrustDomain;

/// The public half of a generation.
#[derive(Clone)]
pub(crate) struct Anchor {
    /// The root certificate, DER.
    pub(crate) root: Vec<u8>,
    /// The root's public key.
    pub(crate) root_key: PublicJwk,
    /// When the root ends.
    pub(crate) not_after: SystemTime,
    /// The key that verifies JWT-SVIDs and tickets.
    pub(crate) jwt_key: PublicJwk,
    kid: String,
    decoding: DecodingKey,
}

/// An anchor as it is published, with what the publisher says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    /// The root certificate, PEM.
    pub(crate) root: String,
    pub(crate) jwt_key: PublicJwk,
    /// RFC 3339: everything signed by these keys has ended by then, unless their replica puts this off.
    pub(crate) until: String,
    /// For people: who published it.
    #[serde(default)]
    pub(crate) replica: String,
}

/// Why an entry can't be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    /// Its root is of another trust domain.
    #[error("{0}")]
    Elsewhere(Broken),
    /// It is none of anybody's.
    #[error("{0}")]
    Wrong(String),
}

impl Anchor {
    /// The public half of `root` and `jwt`.
    pub(crate) fn of(root: &Root, jwt: &JwtKey) -> Self {
        Self {
            root: root.der.clone(),
            root_key: root.public.clone(),
            not_after: root.not_after,
            jwt_key: jwt.public().clone(),
            kid: jwt.kid().to_owned(),
            decoding: jwt.decoding().clone(),
        }
    }

    /// Reads an entry; says what is wrong with one that can't be trusted for `domain`.
    pub(crate) fn parse(entry: &Entry, domain: &TrustDomain) -> Result<Self, Unfit> {
        let wrong = |problem: &str| Unfit::Wrong(problem.to_owned());
        let der = CertificateDer::from_pem_slice(entry.root.as_bytes())
            .map_err(|_| wrong("its root is no PEM certificate"))?;
        let Ok(([], root)) = X509Certificate::from_der(&der) else {
            return Err(wrong("its root is no certificate"));
        };
        check_authority(&root, "its root", domain).map_err(|broken| {
            let elsewhere = matches!(broken, Broken::AuthorityName { .. });
            if elsewhere { Unfit::Elsewhere(broken) } else { Unfit::Wrong(broken.to_string()) }
        })?;
        let root_key =
            PublicJwk::of(root.public_key().raw).ok_or_else(|| wrong("its root's key is not P-256"))?;
        let decoding = DecodingKey::from_ec_components(&entry.jwt_key.x, &entry.jwt_key.y)
            .ok()
            .filter(|_| entry.jwt_key.point().is_some())
            .ok_or_else(|| wrong("its JWT key is no P-256 key"))?;
        Ok(Self {
            not_after: moment(root.validity().not_after.timestamp()),
            root_key,
            jwt_key: entry.jwt_key.clone(),
            kid: entry.jwt_key.thumbprint(),
            decoding,
            root: der.to_vec(),
        })
    }

    /// The entry that publishes this.
    pub(crate) fn entry(&self, until: SystemTime, replica: &str) -> Entry {
        Entry {
            root: certificate_pem(&self.root),
            jwt_key: self.jwt_key.clone(),
            until: humantime::format_rfc3339_seconds(until).to_string(),
            replica: replica.to_owned(),
        }
    }

    /// The id of its JWT key.
    pub(crate) fn kid(&self) -> &str {
        &self.kid
    }

    pub(crate) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }

    /// Whether this is the same root with the same JWT key.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.kid == other.kid && self.root == other.root
    }
}

impl std::fmt::Debug for Anchor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Anchor({})", self.kid)
    }
}
