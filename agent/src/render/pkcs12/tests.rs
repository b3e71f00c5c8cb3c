use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;
use crate::identity::key::hex;
use crate::render::pem;

fn openssl(arguments: &[&str], file: &Path) -> Output {
    let mut command = Command::new("openssl");
    command.arg("pkcs12").arg("-in").arg(file).args(arguments);
    command.output().expect("openssl is installed: the suite needs it")
}

/// What openssl shows of a file: its PEM blocks, without what it says around them.
fn shown(bytes: &Secret, arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file.p12");
    fs::write(&file, bytes.expose()).unwrap();
    let refused = openssl(&["-noout", "-passin", "pass:changed"], &file);
    assert!(!refused.status.success(), "the sum is looked at");
    let arguments = [arguments, &["-passin", "pass:changeit", "-noenc"]].concat();
    let output = openssl(&arguments, &file);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut inside = false;
    let mut blocks = String::new();
    for line in text.lines() {
        inside |= line.starts_with("-----BEGIN");
        if inside {
            blocks.push_str(line);
            blocks.push('\n');
        }
        inside &= !line.starts_with("-----END");
    }
    blocks
}

fn text(pem: &Secret) -> &str {
    std::str::from_utf8(pem.expose()).unwrap()
}

#[test]
fn openssl_reads_what_was_written() {
    let root = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&root).unwrap().der().to_vec();
    let issuer = Issuer::new(params, root);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::default().signed_by(&key, &issuer).unwrap().der().to_vec();
    let key = Secret::new(key.serialize_der());
    let chain = [leaf, authority];

    let store = keystore(&key, &chain).unwrap();
    assert_eq!(shown(&store, &["-nocerts"]), text(&pem::private_key(&key)));
    assert_eq!(shown(&store, &["-nokeys"]), text(&pem::certificates(&chain)));
    // The leaf is the key's own.
    assert_eq!(shown(&store, &["-nokeys", "-clcerts"]), text(&pem::certificates(&chain[..1])));
    let trusted = truststore("example.org", &chain);
    assert_eq!(shown(&trusted, &["-nokeys"]), text(&pem::certificates(&chain)));
    assert_eq!(shown(&trusted, &["-nocerts"]), "");
    assert_eq!(shown(&truststore("example.org", &[]), &[]), "");
}

#[test]
fn the_same_content_is_the_same_file() {
    let (one, other) = (Secret::new(vec![1; 138]), Secret::new(vec![2; 138]));
    let store =
        |key: &Secret| hex(digest(&SHA256, keystore(key, &[vec![3; 500]]).unwrap().expose()).as_ref());
    // Files that Java 17 and OpenSSL 3 have read were made by this very code.
    assert_eq!(store(&one), "c2af121c04b98ffd1108636a34eae7232e8e43330fe134397699988c35f2a4fb");
    assert_ne!(store(&one), store(&other));
    let trusted = truststore("example.org", &[vec![3; 500], vec![4; 20]]);
    assert_eq!(
        hex(digest(&SHA256, trusted.expose()).as_ref()),
        "5c45ab44a1077acf92cfd2a32d404e9104008ec3250ebd20c8c4cda331fc7432"
    );
}

#[test]
fn numbers_and_lengths_as_der_has_them() {
    for (number, der) in [
        (0, &[2, 1, 0][..]),
        (127, &[2, 1, 127]),
        (128, &[2, 2, 0, 128]),
        (1000, &[2, 2, 3, 0xe8]),
        (u32::MAX, &[2, 5, 0, 255, 255, 255, 255]),
    ] {
        assert_eq!(integer(number), der, "{number}");
    }
    for (length, der) in [
        (0, &[4, 0][..]),
        (127, &[4, 127]),
        (128, &[4, 0x81, 128]),
        (256, &[4, 0x82, 1, 0]),
        (65536, &[4, 0x83, 1, 0, 0]),
    ] {
        assert!(octets(&vec![0; length]).starts_with(der), "{length}");
        assert_eq!(octets(&vec![0; length]).len(), der.len() + length);
    }
}
