//! The grammar of references: what is read is written the same, and a password put in place of a reference is not
//! repeated.
#![no_main]

use countersign_agent::request::Reference;
use countersign_fuzz::{assert_readable, assert_round_trip, stores};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Reference::parse(text, &stores()) {
        Ok(reference) => assert_round_trip(&reference),
        Err(problem) => {
            let message = problem.to_string();
            assert_readable(&message);
            let trimmed = text.trim_ascii();
            if trimmed.len() >= 8 && !trimmed.contains(':') {
                // What the message says of any such text.
                let usual = Reference::parse("0123456789", &stores()).expect_err("no reference").to_string();
                assert!(!message.contains(trimmed) || usual.contains(trimmed), "{message:?} repeats {trimmed:?}");
            }
        }
    }
});
