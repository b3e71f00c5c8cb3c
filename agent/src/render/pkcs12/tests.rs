use aws_lc_rs::digest::{SHA256, digest};

use super::*;
use crate::identity::key::hex;

#[test]
fn the_same_content_is_the_same_file() {
    let (one, other) = (Secret::new(vec![1; 138]), Secret::new(vec![2; 138]));
    let store =
        |key: &Secret| hex(digest(&SHA256, keystore(key, &[vec![3; 500]]).unwrap().expose()).as_ref());
    // Files that Java 17 and OpenSSL 3 have read were made by this very code. What the suites with SPIRE deliver is read by
    // OpenSSL and Go each time.
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
