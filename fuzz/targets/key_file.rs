//! A file of age keys: no message shows a part of it.
#![no_main]

use countersign_agent::store::sops::KeyRing;
use countersign_fuzz::{assert_fixed, assert_readable};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match KeyRing::parse(bytes) {
        Ok(keys) => assert!(keys.recipients().all(|recipient| recipient.starts_with("age1"))),
        Err(message) => {
            assert_readable(&message);
            let fixed =
                [&b""[..], b"x", b"\xff"].map(|bytes| KeyRing::parse(bytes).err().unwrap_or_default());
            assert_fixed(&message, &fixed);
        }
    }
});
