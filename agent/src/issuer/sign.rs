//! X.509 certificates by the root: SVIDs (X509-SVID §§2-4), and the issuer's own for TLS.

use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SubjectPublicKeyInfo,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::identity::key::{hex, is_p256};
use crate::identity::svid::{moment, unix};
use crate::issuer::refusal::Refusal;
use crate::issuer::root::{BACKDATE, Root, live, serial_number};

/// The longest CSR: one for a P-256 key without names is some 200 bytes.
const MAX_CSR: usize = 8 * 1024;
/// A certificate that would live shorter than this is not issued.
const MIN_LIFE: Duration = Duration::from_secs(60);

/// The public key of a signing request whose owner showed to have the private one.
#[derive(Debug)]
pub(crate) struct Requested {
    /// `SubjectPublicKeyInfo`, DER.
    pub(crate) public_key_info: Vec<u8>,
    key: SubjectPublicKeyInfo,
}

impl Requested {
    /// Reads a PKCS#10 request (RFC 2986): its key must be P-256 and its signature good. Names and extensions in
    /// it are not looked at.
    pub(crate) fn parse(csr: &[u8]) -> Result<Self, Refusal> {
        let refuse = |problem: &str| Refusal::Malformed { what: "csr", problem: problem.to_owned() };
        if csr.is_empty() {
            return Err(refuse("is missing"));
        }
        if csr.len() > MAX_CSR {
            return Err(refuse("is longer than 8 KiB"));
        }
        let Ok(([], request)) = X509CertificationRequest::from_der(csr) else {
            return Err(refuse("is no PKCS#10 request in DER"));
        };
        let info = &request.certification_request_info.subject_pki;
        if !is_p256(info) {
            return Err(refuse("must have a P-256 key"));
        }
        request.verify_signature().map_err(|_| refuse("is not signed by its own key"))?;
        Self::of(info.raw).ok_or_else(|| refuse("must have a P-256 key"))
    }

    /// A key whose owner we know.
    pub(crate) fn of(public_key_info: &[u8]) -> Option<Self> {
        let key = SubjectPublicKeyInfo::from_der(public_key_info).ok()?;
        Some(Self { public_key_info: public_key_info.to_vec(), key })
    }
}

/// A signed certificate.
pub(crate) struct Signed {
    pub(crate) der: Vec<u8>,
    /// Lower-case hexadecimal.
    pub(crate) serial: String,
    pub(crate) not_after: SystemTime,
}

/// Signs a leaf with these names for `ttl` from `now`, or as long as the root lives.
///
/// Empty subject, so the names are critical; critical key usage digitalSignature; server and client; no authority.
pub(crate) fn leaf(
    root: &Root,
    key: &Requested,
    names: Vec<SanType>,
    now: SystemTime,
    ttl: Duration,
) -> Result<Signed, Refusal> {
    if root.not_after < now + MIN_LIFE {
        return Err(Refusal::RootEnds);
    }
    let not_after = moment(unix((now + ttl).min(root.not_after)));
    let serial = serial_number();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    live(&mut params, now - BACKDATE, not_after);
    params.serial_number = Some(serial.clone());
    let certificate =
        params.signed_by(&key.key, &root.issuer).map_err(|error| Refusal::Signing(error.to_string()))?;
    Ok(Signed { der: certificate.der().to_vec(), serial: hex(&serial.to_bytes()), not_after })
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PublicKeyData as _};
    use x509_parser::certificate::X509Certificate;
    use x509_parser::extensions::GeneralName;

    use super::*;
    use crate::identity::key::PrivateKey;
    use crate::identity::svid::verify_x509;
    use crate::issuer::root::{LIFE, uri};
    use crate::issuer::tests::cluster::NOW;

    const ID: &str = "spiffe://example.org/ns/pay/sa/api";

    fn csr(change: impl FnOnce(&mut CertificateParams), key: &impl rcgen::SigningKey) -> Vec<u8> {
        let mut params = CertificateParams::default();
        change(&mut params);
        params.serialize_request(key).unwrap().der().to_vec()
    }

    fn root() -> Root {
        Root::generate(&"example.org".parse().unwrap(), moment(NOW)).unwrap()
    }

    #[test]
    fn an_svid_keeps_the_rules_whatever_the_request_says() {
        let (root, key) = (root(), PrivateKey::generate().unwrap());
        let greedy = csr(
            |params| {
                params.subject_alt_names = vec![
                    uri("spiffe://example.org/ns/kube-system/sa/admin").unwrap(),
                    SanType::DnsName("api.example.org".try_into().unwrap()),
                ];
                params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            },
            &key,
        );
        let requested = Requested::parse(&greedy).unwrap();
        let ttl = Duration::from_secs(3600);
        let signed = leaf(&root, &requested, vec![uri(ID).unwrap()], moment(NOW), ttl).unwrap();
        let (from, to) = verify_x509(
            std::slice::from_ref(&signed.der),
            std::slice::from_ref(&root.der),
            &ID.parse().unwrap(),
            &key.public_key_info(),
            moment(NOW),
        )
        .unwrap();
        assert_eq!((unix(from), unix(to)), (NOW - 10, NOW + 3600));

        let (_, certificate) = X509Certificate::from_der(&signed.der).unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical);
        assert!(matches!(names.value.general_names.as_slice(), [GeneralName::URI(one)] if *one == ID));
        assert_eq!(certificate.subject().iter().count(), 0);
        assert_eq!(hex(certificate.raw_serial()), signed.serial);
        assert!(certificate.raw_serial()[0] & 0x80 == 0 && certificate.raw_serial().len() == 16);
        let has = |oid: &str| certificate.extensions().iter().any(|one| one.oid.to_id_string() == oid);
        assert!(has("2.5.29.35"), "authority key identifier");
        assert!(has("2.5.29.14"), "subject key identifier");
    }

    #[test]
    fn serial_numbers_differ() {
        let (root, key) = (root(), PrivateKey::generate().unwrap());
        let requested = Requested::of(&key.public_key_info()).unwrap();
        let sign = || leaf(&root, &requested, Vec::new(), moment(NOW), Duration::from_secs(60)).unwrap();
        assert_ne!(sign().serial, sign().serial);
    }

    #[test]
    fn nothing_outlives_the_root() {
        let (root, key) = (root(), PrivateKey::generate().unwrap());
        let requested = Requested::of(&key.public_key_info()).unwrap();
        let sign = |now| leaf(&root, &requested, Vec::new(), now, Duration::from_secs(3600));
        let end = moment(NOW) + LIFE;
        assert_eq!(sign(end - Duration::from_secs(600)).unwrap().not_after, end);
        assert_eq!(sign(end - Duration::from_secs(59)).err(), Some(Refusal::RootEnds));
    }

    #[test]
    fn requests_that_prove_nothing() {
        let key = PrivateKey::generate().unwrap();
        let good = csr(|_| {}, &key);
        let refused = |csr: &[u8]| Requested::parse(csr).unwrap_err().to_string();
        assert_eq!(refused(b""), "the request's csr is missing");
        assert_eq!(refused(b"junk"), "the request's csr is no PKCS#10 request in DER");
        assert_eq!(refused(&vec![0; MAX_CSR + 1]), "the request's csr is longer than 8 KiB");
        assert_eq!(
            refused(&[good.clone(), vec![0]].concat()),
            "the request's csr is no PKCS#10 request in DER"
        );
        let other = PrivateKey::generate().unwrap();
        let mut stolen = good.clone();
        let (from, to) = (key.der_bytes(), other.der_bytes());
        let at = stolen.windows(from.len()).position(|window| window == from).unwrap();
        stolen[at..at + to.len()].copy_from_slice(to);
        assert_eq!(refused(&stolen), "the request's csr is not signed by its own key");
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(refused(&csr(|_| {}, &p384)), "the request's csr must have a P-256 key");
    }
}
