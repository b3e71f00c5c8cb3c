use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::issuer::keys::Keys;
use crate::issuer::tests::cluster::{Cluster, NOW};

fn block(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

fn key_block(key: &PrivateKey) -> String {
    block("PRIVATE KEY", key.to_pkcs8().unwrap().expose())
}

fn td() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn now() -> SystemTime {
    moment(NOW)
}

fn with_mode(cluster: &Cluster, pem: &str, mode: u32) -> std::path::PathBuf {
    let path = cluster.path("root.pem");
    std::fs::write(&path, pem).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn refused(pem: &str) -> String {
    parse(pem.as_bytes(), &td(), now()).err().unwrap()
}

#[test]
fn a_file_of_root_and_jwt_key_outlives_a_restart() {
    let root = Root::generate(&td(), now()).unwrap();
    let jwt_key = PrivateKey::generate().unwrap();
    // The order does not matter.
    let pem = key_block(&jwt_key) + &block("CERTIFICATE", &root.der) + &key_block(root.issuer.key());
    let cluster = Cluster::new();
    let mut config = cluster.config();
    config.root_file = Some(with_mode(&cluster, &pem, 0o440));
    let (one, two) = (Keys::new(&config, now()).unwrap(), Keys::new(&config, now()).unwrap());
    assert_eq!(one.roots(), std::slice::from_ref(&root.der));
    let kid = |keys: &Keys| keys.signing(now()).unwrap().jwt.kid().to_owned();
    assert_eq!(kid(&one), kid(&two));
    assert_eq!(one.next_change(), None);
    assert!(!one.advance(now() + 9 * LIFE).unwrap());
}

#[test]
fn without_a_second_key_jwts_are_by_one_in_memory() {
    let root = Root::generate(&td(), now()).unwrap();
    let pem = block("CERTIFICATE", &root.der) + &key_block(root.issuer.key());
    let file = parse(pem.as_bytes(), &td(), now()).unwrap();
    assert!(file.jwt_key.is_none());
    assert_eq!(file.root.not_after, now() + LIFE);
}

#[test]
fn everybody_s_file_is_refused() {
    let root = Root::generate(&td(), now()).unwrap();
    let pem = block("CERTIFICATE", &root.der) + &key_block(root.issuer.key());
    let cluster = Cluster::new();
    let path = with_mode(&cluster, &pem, 0o644);
    let error = read(&path, &td(), now()).err().unwrap().to_string();
    assert!(error.ends_with("has mode 0644, so everybody can use its keys; make it 0600 or 0440"), "{error}");
    assert!(read(&with_mode(&cluster, &pem, 0o600), &td(), now()).is_ok());
    let error = read(&cluster.path("none.pem"), &td(), now()).err().unwrap().to_string();
    assert!(error.ends_with("none.pem: can't be read: entity not found"), "{error}");
}

#[test]
fn files_that_are_no_root() {
    let root = Root::generate(&td(), now()).unwrap();
    let other = PrivateKey::generate().unwrap();
    let certificate = block("CERTIFICATE", &root.der);
    let key = key_block(root.issuer.key());
    assert_eq!(refused(""), "must hold exactly one CERTIFICATE, and holds 0");
    assert_eq!(
        refused(&(certificate.clone() + &certificate)),
        "must hold exactly one CERTIFICATE, and holds 2"
    );
    assert_eq!(refused(&certificate), "holds no PRIVATE KEY that fits its CERTIFICATE");
    assert_eq!(
        refused(&(certificate.clone() + &key_block(&other))),
        "holds no PRIVATE KEY that fits its CERTIFICATE"
    );
    assert_eq!(
        refused(&(certificate.clone() + &key + &key_block(&other) + &key_block(&other))),
        "holds 3 keys; the root's and one for JWTs are all there may be"
    );
    assert_eq!(refused(&(block("CERTIFICATE", b"junk") + &key)), "its CERTIFICATE is no certificate");
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert_eq!(
        refused(&(certificate.clone() + &block("PRIVATE KEY", &p384.serialize_der()))),
        "holds a key that is not a P-256 private key in PKCS#8 or SEC1 form"
    );
    let late = parse((certificate + &key).as_bytes(), &td(), now() + LIFE).err().unwrap();
    assert!(late.starts_with("its CERTIFICATE is valid from Unix time"), "{late}");
}

#[test]
fn certificates_that_may_not_be_a_root() {
    let root = Root::generate(&td(), now()).unwrap();
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    live(&mut params, now() - BACKDATE, now() + LIFE);
    let file = |der: &[u8]| block("CERTIFICATE", der) + &key_block(&key);
    let intermediate = params.signed_by(&key, &root.issuer).unwrap();
    assert_eq!(
        refused(&file(intermediate.der())),
        "its CERTIFICATE is not self-signed; only a root can be used"
    );
    assert!(parse(file(params.self_signed(&key).unwrap().der()).as_bytes(), &td(), now()).is_ok());
    params.subject_alt_names = vec![uri("spiffe://example.com").unwrap()];
    assert_eq!(
        refused(&file(params.self_signed(&key).unwrap().der())),
        "its CERTIFICATE has a SPIFFE ID with a path, or of another trust domain"
    );
    params.subject_alt_names.clear();
    params.key_usages.clear();
    assert_eq!(
        refused(&file(params.self_signed(&key).unwrap().der())),
        "its CERTIFICATE is no certificate authority with critical keyCertSign"
    );
}
