//! Encrypted files: the first byte tells the notation, `j` or anything else. The corpus begins with files that our key opens; whatever is
//! done to them, no message shows what is in them.
#![no_main]

use std::sync::LazyLock;

use countersign_agent::store::sops::{Format, KeyRing, parse};
use countersign_fuzz::{assert_readable, assert_secretive};
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<KeyRing> = LazyLock::new(|| {
    KeyRing::parse(include_bytes!("../keys/age.txt")).expect("the key in the repository is one")
});

fuzz_target!(|input: &[u8]| {
    let Some((&notation, bytes)) = input.split_first() else { return };
    let format = if notation == b'j' { Format::Json } else { Format::Yaml };
    match parse(bytes, format, &KEYS) {
        Ok(document) => assert_secretive(&format!("{document:?}"), bytes),
        Err(flaw) => {
            assert_readable(&flaw.to_string());
            assert_secretive(&format!("{flaw} {flaw:?}"), bytes);
        }
    }
});
