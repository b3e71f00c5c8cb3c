//! The grammar of references: what is read is written the same, and a password put in place of a reference is not
//! repeated.
#![no_main]

use countersign_agent::request::Reference;
use countersign_fuzz::{assert_fixed, assert_readable, assert_round_trip, stores};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Reference::parse(text, &stores()) {
        Ok(reference) => assert_round_trip(&reference),
        Err(problem) => {
            let message = problem.to_string();
            assert_readable(&message);
            // Without a colon it may be a password: no message has a part of it.
            if !text.contains(':') {
                let long = "x".repeat(1025);
                let fixed = ["", "x", "\x07", &long]
                    .map(|text| Reference::parse(text, &stores()).expect_err("no reference").to_string());
                assert_fixed(&message, &fixed);
            }
        }
    }
});
