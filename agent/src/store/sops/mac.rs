//! The MAC of a file: SHA-512 over its values in order, in upper-case hexadecimal, itself encrypted in the sops section.

use aws_lc_rs::digest::{Context, SHA512};
use zeroize::Zeroizing;

use super::tree::Scalar;

/// SHA-256 of `sops`: what the hash begins with when it leaves out what is not encrypted, so that nobody can switch
/// that setting in the file.
const ONLY_ENCRYPTED: [u8; 32] = [
    0x8a, 0x3f, 0xd2, 0xad, 0x54, 0xce, 0x66, 0x52, 0x7b, 0x10, 0x34, 0xf3, 0xd1, 0x47, 0xbe, 0x0b, 0x0b,
    0x97, 0x5b, 0x3b, 0xf4, 0x4f, 0x72, 0xc6, 0xfd, 0xad, 0xec, 0x81, 0x76, 0xf2, 0x7d, 0x69,
];

/// The hash so far.
pub(super) struct Mac {
    hash: Context,
    only_encrypted: bool,
}

impl Mac {
    pub(super) fn new(only_encrypted: bool) -> Self {
        let mut hash = Context::new(&SHA512);
        if only_encrypted {
            hash.update(&ONLY_ENCRYPTED);
        }
        Self { hash, only_encrypted }
    }

    pub(super) fn add(&mut self, scalar: &Scalar, encrypted: bool) {
        if let Some(bytes) = scalar.bytes().filter(|_| encrypted || !self.only_encrypted) {
            self.hash.update(bytes);
        }
    }

    /// Treated as a secret: a hash of a short secret tells the secret.
    pub(super) fn finish(self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(128));
        for byte in self.hash.finish().as_ref() {
            for nibble in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(nibble.into(), 16).map(|digit| digit.to_ascii_uppercase()));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_the_hash_of_the_name() {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"sops");
        assert_eq!(digest.as_ref(), ONLY_ENCRYPTED);
    }

    #[test]
    fn order_counts_and_the_setting_counts() {
        let mac = |only, texts: &[(&str, bool)]| {
            let mut mac = Mac::new(only);
            for (text, encrypted) in texts {
                mac.add(&Scalar::from_text(text), *encrypted);
            }
            mac.finish()
        };
        assert_ne!(mac(false, &[("a", true), ("b", true)]), mac(false, &[("b", true), ("a", true)]));
        assert_ne!(mac(false, &[("a", true)]), mac(true, &[("a", true)]));
        assert_eq!(mac(true, &[("a", true), ("b", false)]), mac(true, &[("a", true)]));
        assert_eq!(
            mac(false, &[("abc", false)]).as_str(),
            // FIPS 180-2, C.1
            "DDAF35A193617ABACC417349AE20413112E6FA4E89A97EA20A9EEEE64B55D39A\
             2192992A274FC1A836BA3C23A3FEEBBD454D4423643CE80E2A9AC94FA54CA49F"
        );
    }
}
