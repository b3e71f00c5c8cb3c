//! A file of age keys: no message shows a part of it.
#![no_main]

use countersign_agent::store::sops::KeyRing;
use countersign_fuzz::assert_readable;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match KeyRing::parse(bytes) {
        Ok(keys) => assert!(keys.recipients().all(|recipient| recipient.starts_with("age1"))),
        Err(message) => {
            assert_readable(&message);
            let usual = KeyRing::parse(b"").err().unwrap_or_default();
            let usual = format!("{usual}{}", KeyRing::parse(b"x").err().unwrap_or_default());
            for line in String::from_utf8_lossy(bytes).lines().map(str::trim).filter(|line| line.len() >= 8) {
                assert!(!message.contains(line) || usual.contains(line), "{message:?} repeats {line:?}");
            }
        }
    }
});
