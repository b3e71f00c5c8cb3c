//! Certificates and keys as PEM (RFC 7468), in memory that is overwritten.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Bytes in a line of 64 letters.
const LINE: usize = 48;
const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";
const REQUEST: &str = "CERTIFICATE REQUEST";

/// DER certificates, in their order.
pub(super) fn certificates(ders: &[Vec<u8>]) -> Secret {
    let length = ders.iter().map(|der| length(CERTIFICATE, der)).sum();
    let mut text = Zeroizing::new(Vec::with_capacity(length));
    for der in ders {
        write(CERTIFICATE, der, &mut text);
    }
    text.into()
}

/// A PKCS#10 request.
pub(crate) fn signing_request(der: &[u8]) -> Secret {
    let mut text = Zeroizing::new(Vec::with_capacity(length(REQUEST, der)));
    write(REQUEST, der, &mut text);
    text.into()
}

/// A PKCS#8 key.
pub(crate) fn private_key(der: &Secret) -> Secret {
    let mut text = Zeroizing::new(Vec::with_capacity(length(PRIVATE_KEY, der.expose())));
    write(PRIVATE_KEY, der.expose(), &mut text);
    text.into()
}

/// A PKCS#8 key, and the DER certificates after it.
pub(super) fn private_key_and_certificates(key: &Secret, ders: &[Vec<u8>]) -> Secret {
    let certificates: usize = ders.iter().map(|der| length(CERTIFICATE, der)).sum();
    let mut text = Zeroizing::new(Vec::with_capacity(length(PRIVATE_KEY, key.expose()) + certificates));
    write(PRIVATE_KEY, key.expose(), &mut text);
    for der in ders {
        write(CERTIFICATE, der, &mut text);
    }
    text.into()
}

/// Bytes of the PEM of `der`, so that the vector it is written to never grows.
fn length(label: &str, der: &[u8]) -> usize {
    let lines = der.len().div_ceil(LINE);
    "-----BEGIN -----\n-----END -----\n".len() + 2 * label.len() + der.len().div_ceil(3) * 4 + lines
}

fn write(label: &str, der: &[u8], into: &mut Zeroizing<Vec<u8>>) {
    let mut add = |part: &str| into.extend_from_slice(part.as_bytes());
    ["-----BEGIN ", label, "-----\n"].into_iter().for_each(&mut add);
    let mut line = Zeroizing::new([0; 64]);
    for bytes in der.chunks(LINE) {
        // A line of bytes always fits a line of letters.
        let letters = STANDARD.encode_slice(bytes, line.as_mut_slice()).unwrap_or_default();
        add(line.get(..letters).and_then(|letters| std::str::from_utf8(letters).ok()).unwrap_or_default());
        add("\n");
    }
    ["-----END ", label, "-----\n"].into_iter().for_each(&mut add);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_reader_reads_the_same() {
        for size in [0, 1, 47, 48, 49, 96, 500] {
            let der: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let key = private_key(&Secret::new(der.clone()));
            assert_eq!(key.len(), length(PRIVATE_KEY, &der));
            let text = std::str::from_utf8(key.expose()).unwrap();
            let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
            assert_eq!(STANDARD.decode(body).unwrap(), der);
            assert!(text.starts_with("-----BEGIN PRIVATE KEY-----\n"));
            assert!(text.ends_with("-----END PRIVATE KEY-----\n"));
            assert!(text.lines().all(|line| line.len() <= 64));
        }
    }

    #[test]
    fn certificates_follow_each_other() {
        let made: Vec<Vec<u8>> = ["a.example", "b.example"]
            .map(|name| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert.der().to_vec())
            .into();
        let text = certificates(&made);
        let read: Vec<Vec<u8>> = x509_parser::pem::Pem::iter_from_buffer(text.expose())
            .map(|pem| pem.unwrap())
            .inspect(|pem| assert_eq!(pem.label, CERTIFICATE))
            .map(|pem| pem.contents)
            .collect();
        assert_eq!(read, made);
    }
}
