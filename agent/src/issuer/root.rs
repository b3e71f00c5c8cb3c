//! The root certificate and its key: made in memory, or read from one PEM file.
//!
//! The file holds one self-signed CERTIFICATE, its P-256 PRIVATE KEY (PKCS#8 or SEC 1), and, if JWT-SVIDs are to
//! survive a restart, a second P-256 PRIVATE KEY that signs them. Order does not matter: the key that fits the
//! certificate is the root's. Whoever can read the file can be anybody in the trust domain.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use crate::identity::key::{PrivateKey, hex};
use crate::identity::svid::{check_authority, moment, unix};
use crate::issuer::Error;
use crate::issuer::jwt::PublicJwk;
use crate::spiffe::TrustDomain;

/// How long a root in memory lives.
pub(crate) const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long before now a certificate begins, for verifiers whose clock is behind.
pub(crate) const BACKDATE: Duration = Duration::from_secs(10);
/// `id-at-serialNumber`, X.520: tells roots of one trust domain apart by name.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// A root certificate that can sign.
pub(crate) struct Root {
    pub(crate) der: Vec<u8>,
    pub(crate) public: PublicJwk,
    pub(crate) issuer: rcgen::Issuer<'static, PrivateKey>,
    pub(crate) not_after: SystemTime,
}

impl Root {
    /// A new root in memory.
    pub(crate) fn generate(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, Error> {
        let unmade = |problem: &dyn std::fmt::Display| Error::Root(problem.to_string());
        let key = PrivateKey::generate().map_err(|error| unmade(&error))?;
        let serial = hex(&rand::random::<[u8; 8]>());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Countersign");
        let printable = serial.as_str().try_into().map_err(|error| unmade(&error))?;
        params.distinguished_name.push(DnType::from_oid(&SERIAL_NUMBER), DnValue::PrintableString(printable));
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial_number());
        live(&mut params, now - BACKDATE, now + LIFE);
        let der = params.self_signed(&key).map_err(|error| unmade(&error))?.der().to_vec();
        let public = PublicJwk::of(&key.public_key_info()).ok_or_else(|| unmade(&"its key is odd"))?;
        let issuer = rcgen::Issuer::new(params, key);
        Ok(Self { der, public, issuer, not_after: moment(unix(now + LIFE)) })
    }
}

/// A positive serial number of 127 random bits (RFC 5280 §4.1.2.2).
pub(crate) fn serial_number() -> rcgen::SerialNumber {
    let [first, rest @ ..] = rand::random::<[u8; 16]>();
    let mut bytes = vec![(first & 0x7f) | 0x40];
    bytes.extend(rest);
    rcgen::SerialNumber::from(bytes)
}

/// A URI name.
pub(crate) fn uri(text: &str) -> Result<SanType, Error> {
    let name = text.try_into().map_err(|error: rcgen::Error| Error::Root(error.to_string()))?;
    Ok(SanType::URI(name))
}

/// Sets the life of a certificate, in X.509's whole seconds.
pub(crate) fn live(params: &mut CertificateParams, from: SystemTime, to: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + Duration::from_secs(since(from).as_secs());
    params.not_after = epoch + Duration::from_secs(since(to).as_secs());
}

/// What a root file holds.
pub(crate) struct RootFile {
    pub(crate) root: Root,
    /// The second key, if there is one.
    pub(crate) jwt_key: Option<PrivateKey>,
}

/// Reads the root file.
pub(crate) fn read(path: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<RootFile, Error> {
    let wrong = |problem: String| Error::RootFile { path: path.to_owned(), problem };
    let unreadable = |error: std::io::Error| wrong(format!("can't be read: {}", error.kind()));
    let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode();
    if mode & 0o007 != 0 {
        let problem =
            format!("has mode {:04o}, so everybody can use its keys; make it 0600 or 0440", mode & 0o7777);
        return Err(wrong(problem));
    }
    let pem = Zeroizing::new(std::fs::read(path).map_err(unreadable)?);
    parse(&pem, trust_domain, now).map_err(wrong)
}

fn parse(pem: &[u8], trust_domain: &TrustDomain, now: SystemTime) -> Result<RootFile, String> {
    let certificates: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| "is no PEM".to_owned())?;
    let [certificate] = certificates.as_slice() else {
        return Err(format!("must hold exactly one CERTIFICATE, and holds {}", certificates.len()));
    };
    let mut keys = Vec::new();
    for key in PrivateKeyDer::pem_slice_iter(pem) {
        let key = Zeroizing::new(key.map_err(|_| "holds a PRIVATE KEY that can't be read".to_owned())?);
        keys.push(
            PrivateKey::from_der(key.secret_der()).map_err(|error| format!("holds a key that is {error}"))?,
        );
    }
    let (rest, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| "its CERTIFICATE is no certificate".to_owned())?;
    if !rest.is_empty() {
        return Err("its CERTIFICATE has something behind it".to_owned());
    }
    let at = keys.iter().position(|key| key.public_key_info() == parsed.public_key().raw);
    let key = at.map(|at| keys.swap_remove(at)).ok_or("holds no PRIVATE KEY that fits its CERTIFICATE")?;
    if keys.len() > 1 {
        return Err(format!(
            "holds {} keys; the root's and one for JWTs are all there may be",
            keys.len() + 1
        ));
    }
    check(&parsed, trust_domain, now)?;
    let not_after = moment(parsed.validity().not_after.timestamp());
    let public = PublicJwk::of(&key.public_key_info()).ok_or("holds a root key that is not P-256")?;
    let issuer = rcgen::Issuer::from_ca_cert_der(certificate, key)
        .map_err(|error| format!("its CERTIFICATE can't sign: {error}"))?;
    Ok(RootFile { root: Root { der: certificate.to_vec(), public, issuer, not_after }, jwt_key: keys.pop() })
}

fn check(root: &X509Certificate<'_>, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), String> {
    check_authority(root, "its CERTIFICATE", trust_domain).map_err(|broken| broken.to_string())?;
    if root.issuer().as_raw() != root.subject().as_raw() || root.verify_signature(None).is_err() {
        return Err("its CERTIFICATE is not self-signed; only a root can be used".to_owned());
    }
    let (from, to) = (root.validity().not_before.timestamp(), root.validity().not_after.timestamp());
    let now = unix(now);
    if now < from || now >= to {
        return Err(format!("its CERTIFICATE is valid from Unix time {from} to {to}, and it is {now}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
