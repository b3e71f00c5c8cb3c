//! Trusted certificates as a Java key store ("JKS"), for programs that read no other form.
//!
//! The format has no standard but the source of Java's own reader: big-endian numbers, texts in modified UTF-8 after
//! their length, and a SHA-1 over password, a fixed phrase and everything before it. Java asks for that password, and it
//! protects nothing here: the certificates are public, and the file can only be replaced by us.

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

/// Java's own default, which its users expect.
const PASSWORD: &str = "changeit";
const MAGIC: u32 = 0xFEED_FEED;
const VERSION: u32 = 2;
const TRUSTED_CERTIFICATE: u32 = 2;
const PHRASE: &[u8] = b"Mighty Aphrodite";

/// A store of DER `certificates`, whose aliases are `name-1`, `name-2`, … (`name` is printable ASCII).
pub(super) fn truststore(name: &str, certificates: &[Vec<u8>]) -> Vec<u8> {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    let mut store = Vec::new();
    store.extend(MAGIC.to_be_bytes());
    store.extend(VERSION.to_be_bytes());
    store.extend(number(certificates.len()));
    for (place, der) in certificates.iter().enumerate() {
        store.extend(TRUSTED_CERTIFICATE.to_be_bytes());
        text(&format!("{name}-{}", place + 1), &mut store);
        // When the entry was made: always the same, so that an unchanged bundle is an unchanged file.
        store.extend(0_u64.to_be_bytes());
        text("X.509", &mut store);
        store.extend(number(der.len()));
        store.extend_from_slice(der);
    }
    let mut sum = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    PASSWORD.encode_utf16().for_each(|unit| sum.update(&unit.to_be_bytes()));
    sum.update(PHRASE);
    sum.update(&store);
    store.extend_from_slice(sum.finish().as_ref());
    store
}

/// A text of plain ASCII, shorter than 64 KiB: a trust domain's name has at most 255 bytes.
fn text(text: &str, into: &mut Vec<u8>) {
    into.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    into.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::key::hex;

    #[test]
    fn a_store_byte_for_byte() {
        assert_eq!(
            hex(&truststore("a.b", &[vec![0x30, 0x00]])),
            "feedfeed\
             00000002\
             00000001\
             00000002\
             0005612e622d31\
             0000000000000000\
             0005582e353039\
             00000002\
             3000\
             1f9e6bc30ca96138a24a4a3b4f0ef77cc3dd2e58"
        );
    }
}
