//! P-256 private keys: the only kind Countersign makes, on the node and in the issuer.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rcgen::PublicKeyData as _;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::secret::Secret;

/// `id-ecPublicKey`, RFC 5480 §2.1.1.
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
/// `secp256r1`, RFC 5480 §2.1.1.1.
const P256: &str = "1.2.840.10045.3.1.7";

/// A key that could not be made, read or used. Carries nothing of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    /// The library refused to make one, which means no entropy or no memory.
    #[error("no key could be generated")]
    Generate,
    /// Not a P-256 private key in PKCS#8 or SEC 1.
    #[error("not a P-256 private key in PKCS#8 or SEC1 form")]
    Parse,
    /// Not a private key of a kind the TLS library knows.
    #[error("not a private key in PKCS#8 form of a kind that TLS knows")]
    Kind,
    /// The library refused to sign.
    #[error("the key could not sign")]
    Sign,
}

/// A P-256 private key. It lives in the cryptographic library's memory, which that library overwrites when the
/// key is dropped.
pub(crate) struct PrivateKey {
    pair: EcdsaKeyPair,
    point: Vec<u8>,
}

impl PrivateKey {
    /// A new key.
    pub(crate) fn generate() -> Result<Self, KeyError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(Self::from_pair)
            .map_err(|_| KeyError::Generate)
    }

    /// Reads PKCS#8 (RFC 5958) or SEC 1 (RFC 5915), DER.
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map(Self::from_pair)
            .map_err(|_| KeyError::Parse)
    }

    fn from_pair(pair: EcdsaKeyPair) -> Self {
        let point = pair.public_key().as_ref().to_vec();
        Self { pair, point }
    }

    /// PKCS#8, DER.
    pub(crate) fn to_pkcs8(&self) -> Result<Secret, KeyError> {
        let document = self.pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
        Ok(Secret::new(document.as_ref().to_vec()))
    }

    /// The public key as a `SubjectPublicKeyInfo`, DER.
    pub(crate) fn public_key_info(&self) -> Vec<u8> {
        self.subject_public_key_info()
    }

    /// ECDSA with SHA-256 over `message`, ASN.1 DER.
    pub(crate) fn sign_message(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.pair.sign(&SystemRandom::new(), message).map_err(|_| KeyError::Sign)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign_message(message).map_err(|_| rcgen::Error::RingUnspecified)
    }
}

/// The `SubjectPublicKeyInfo` of any kind of private key that can sign in TLS, PKCS#8 DER: other issuers than ours
/// also make RSA keys and keys on other curves.
pub(crate) fn public_key_info_of(pkcs8: &Secret) -> Result<Vec<u8>, KeyError> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8.expose()));
    let key = any_supported_type(&key).map_err(|_| KeyError::Kind)?;
    key.public_key().map(|info| info.to_vec()).ok_or(KeyError::Kind)
}

/// Whether `info` is a P-256 public key.
pub(crate) fn is_p256(info: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    info.algorithm.algorithm.to_id_string() == EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve.to_id_string() == P256)
        && info.subject_public_key.data.len() == 65
}

/// The uncompressed point in a P-256 `SubjectPublicKeyInfo`; nothing for any other key.
pub(crate) fn point(public_key_info: &[u8]) -> Option<Vec<u8>> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(public_key_info).ok()?;
    (rest.is_empty() && is_p256(&info)).then(|| info.subject_public_key.data.to_vec())
}

/// Whether `signature` (ASN.1 DER) over `message` was made by the key with this uncompressed point.
pub(crate) fn verifies(point: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(message, signature).is_ok()
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a string does not fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_pkcs8_form() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_der(key.to_pkcs8().unwrap().expose()).unwrap();
        let info = key.public_key_info();
        assert_eq!(info, again.public_key_info());
        let signature = again.sign_message(b"text").unwrap();
        let point = point(&info).unwrap();
        assert!(verifies(&point, b"text", &signature));
        assert!(!verifies(&point, b"texts", &signature));
    }

    #[test]
    fn other_keys_are_no_p256_keys() {
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(point(&p384.subject_public_key_info()), None);
        assert_eq!(PrivateKey::from_der(&p384.serialize_der()).err(), Some(KeyError::Parse));
        assert_eq!(PrivateKey::from_der(b"").err(), Some(KeyError::Parse));
    }

    #[test]
    fn the_public_half_of_any_key_that_can_sign() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(public_key_info_of(&key.to_pkcs8().unwrap()), Ok(key.public_key_info()));
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let info = public_key_info_of(&Secret::new(key.serialize_der())).unwrap();
            assert_eq!(info, key.subject_public_key_info());
        }
        assert_eq!(public_key_info_of(&Secret::from("junk".to_owned())), Err(KeyError::Kind));
    }

    #[test]
    fn digits() {
        assert_eq!(hex(&sha256(b"")[..4]), "e3b0c442");
    }
}
