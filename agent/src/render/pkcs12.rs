//! Keys and certificates as PKCS#12 (RFC 7292), for programs that read no other form.
//!
//! Everybody knows the password, and it protects nothing here: who can read this file can read it. It is there because
//! the format's readers ask for one. So certificates are not encrypted, and the private key is, in the one way
//! that all readers of today share (PBES2 with PBKDF2, HMAC-SHA-256 and AES-256-CBC, RFC 8018); the sum over it all is an
//! HMAC-SHA-256. What is random elsewhere follows from the content, so that unchanged content is an unchanged file.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{digest, hmac, pbkdf2};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// As for the Java key store beside it.
const PASSWORD: &str = "changeit";
/// The least that some readers accept.
const ITERATIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);
/// Name of the one key; Java calls it an alias.
const KEY_NAME: &str = "svid";
/// Ties the key to its certificate.
const KEY_ID: &[u8] = &[1];

const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
const KEY_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 10, 1, 2];
const CERTIFICATE_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 10, 1, 3];
const X509_CERTIFICATE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 22, 1];
const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 20];
const LOCAL_KEY_ID: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 21];
/// Java's own attribute: without it, it takes a certificate for no trusted one (2.16.840.1.113894.746875.1.1).
const TRUSTED_KEY_USAGE: &[u8] = &[0x60, 0x86, 0x48, 1, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 1, 1];
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0];
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 13];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 12];
const HMAC_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 9];
const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 42];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];

/// Bytes of an AES block.
const BLOCK: usize = 16;

/// A private `key` (PKCS#8, DER) with its `chain` (DER, the leaf first).
pub(super) fn keystore(key: &Secret, chain: &[Vec<u8>]) -> Result<Secret, Unspecified> {
    let named = [attribute(FRIENDLY_NAME, &bmp(KEY_NAME)), attribute(LOCAL_KEY_ID, &octets(KEY_ID))];
    let key_bag = bag(KEY_BAG, &encrypted(key)?, &named);
    let certificates = chain.iter().enumerate().map(|(place, der)| {
        // The leaf belongs to the key, and is found by it.
        let attributes = if place == 0 { &named[..] } else { &[] };
        bag(CERTIFICATE_BAG, &certificate(der), attributes)
    });
    let certificates = certificates.collect::<Vec<_>>().concat();
    Ok(Secret::new(authenticated(&[certificates, key_bag], key.expose())))
}

/// DER `certificates` that are trusted, called `name-1`, `name-2`, … (`name` is printable ASCII).
pub(super) fn truststore(name: &str, certificates: &[Vec<u8>]) -> Secret {
    let trusted = attribute(TRUSTED_KEY_USAGE, &tlv(OBJECT, ANY_USAGE));
    let bags = certificates.iter().enumerate().map(|(place, der)| {
        let name = attribute(FRIENDLY_NAME, &bmp(&format!("{name}-{}", place + 1)));
        bag(CERTIFICATE_BAG, &certificate(der), &[name, trusted.clone()])
    });
    let bags = bags.collect::<Vec<_>>().concat();
    Secret::new(authenticated(&[bags], &[]))
}

/// The whole file (RFC 7292 §4) of these contents, whose sum is salted by `seed`.
fn authenticated(contents: &[Vec<u8>], seed: &[u8]) -> Vec<u8> {
    let contents: Vec<u8> = contents.iter().flat_map(|bags| data(&sequence(&[bags]))).collect();
    let safe = sequence(&[&contents]);
    let salt = derived(seed, &[b"mac", &safe]);
    let sum = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &*mac_key(&salt)), &safe);
    let sum = sequence(&[&algorithm(SHA256, &tlv(NULL, &[])), &octets(sum.as_ref())]);
    let sum = sequence(&[&sum, &octets(&salt), &integer(ITERATIONS.get())]);
    sequence(&[&integer(3), &data(&safe), &sum])
}

/// A key, encrypted (`EncryptedPrivateKeyInfo`, RFC 5958 §3).
fn encrypted(key: &Secret) -> Result<Vec<u8>, Unspecified> {
    let salt = derived(key.expose(), &[b"key"]);
    let iv: [u8; BLOCK] = *derived(key.expose(), &[b"iv"]).first_chunk().ok_or(Unspecified)?;
    let mut secret = Zeroizing::new([0; 32]);
    let kdf = pbkdf2::PBKDF2_HMAC_SHA256;
    pbkdf2::derive(kdf, ITERATIONS, &salt, PASSWORD.as_bytes(), &mut *secret);
    let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_256, &*secret)?)?;
    // With room for the padding: a vector that grows leaves its old bytes behind.
    let mut text = Zeroizing::new(Vec::with_capacity(key.len() + BLOCK));
    text.extend_from_slice(key.expose());
    cipher.less_safe_encrypt(&mut *text, EncryptionContext::Iv128((&iv).into()))?;
    let hash = algorithm(HMAC_SHA256, &tlv(NULL, &[]));
    let kdf = algorithm(PBKDF2, &sequence(&[&octets(&salt), &integer(ITERATIONS.get()), &hash]));
    let scheme = algorithm(PBES2, &sequence(&[&kdf, &algorithm(AES_256_CBC, &octets(&iv))]));
    Ok(sequence(&[&scheme, &octets(&text)]))
}

/// What nobody can foresee who does not know `seed`, and is the same every time.
fn derived(seed: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, seed));
    for part in parts {
        context.update(part);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.sign().as_ref());
    bytes
}

/// The key of the sum (RFC 7292 appendix B.2: purpose 3, SHA-256, whose one block is all that is needed).
fn mac_key(salt: &[u8]) -> Zeroizing<[u8; 32]> {
    const INPUT: usize = 64;
    let password: Vec<u8> = PASSWORD.encode_utf16().chain([0]).flat_map(u16::to_be_bytes).collect();
    let filled = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().copied().cycle().take(bytes.len().next_multiple_of(INPUT)).collect()
    };
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[3; INPUT]);
    context.update(&filled(salt));
    context.update(&filled(&password));
    let mut hash = context.finish();
    for _ in 1..ITERATIONS.get() {
        hash = digest::digest(&digest::SHA256, hash.as_ref());
    }
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(hash.as_ref());
    key
}

/// A `SafeBag`. The encodings of a set's members are in order (X.690 §11.6).
fn bag(kind: &[u8], value: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut attributes = attributes.to_vec();
    attributes.sort();
    let attributes = if attributes.is_empty() { Vec::new() } else { tlv(SET, &attributes.concat()) };
    sequence(&[&tlv(OBJECT, kind), &tlv(EXPLICIT, value), &attributes])
}

fn certificate(der: &[u8]) -> Vec<u8> {
    sequence(&[&tlv(OBJECT, X509_CERTIFICATE), &tlv(EXPLICIT, &octets(der))])
}

fn attribute(name: &[u8], value: &[u8]) -> Vec<u8> {
    sequence(&[&tlv(OBJECT, name), &tlv(SET, value)])
}

/// A `ContentInfo` that is not encrypted.
fn data(bytes: &[u8]) -> Vec<u8> {
    sequence(&[&tlv(OBJECT, DATA), &tlv(EXPLICIT, &octets(bytes))])
}

fn algorithm(name: &[u8], parameters: &[u8]) -> Vec<u8> {
    sequence(&[&tlv(OBJECT, name), parameters])
}

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const NULL: u8 = 0x05;
const OBJECT: u8 = 0x06;
const BMP: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const EXPLICIT: u8 = 0xa0;

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

fn octets(bytes: &[u8]) -> Vec<u8> {
    tlv(OCTETS, bytes)
}

/// A text of the basic multilingual plane.
fn bmp(text: &str) -> Vec<u8> {
    tlv(BMP, &text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>())
}

fn integer(number: u32) -> Vec<u8> {
    let bytes = u64::from(number).to_be_bytes();
    // As short as it goes, with a first bit of 0.
    let zeros = bytes.windows(2).take_while(|pair| matches!(pair, [0, next] if *next < 0x80)).count();
    tlv(INTEGER, bytes.get(zeros..).unwrap_or_default())
}

/// One value in DER.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    let length = length.get(zeros..).unwrap_or_default();
    let mut der = Vec::with_capacity(value.len() + 10);
    der.push(tag);
    match length {
        [] => der.push(0),
        [short @ ..0x80] => der.push(*short),
        long => {
            der.push(0x80 | u8::try_from(long.len()).unwrap_or(u8::MAX));
            der.extend_from_slice(long);
        }
    }
    der.extend_from_slice(value);
    der
}

#[cfg(test)]
mod tests;
