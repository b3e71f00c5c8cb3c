//! What several fuzz targets assert.

use countersign_agent::request::{Reference, StoreNames};

/// Stores for references to name.
pub fn stores() -> StoreNames {
    ["sops", "vault", "vault-eu"].into_iter().collect()
}

/// A message is one line that a terminal or an event can show as it is.
///
/// # Panics
/// If it is not.
pub fn assert_readable(message: &str) {
    assert!(!message.is_empty(), "a message says something");
    assert!(!message.chars().any(char::is_control), "a control character in {message:?}");
}

/// A message is one of those that are the same for any input, numbers aside: so it repeats nothing of it.
///
/// # Panics
/// If it is another.
pub fn assert_fixed(message: &str, fixed: &[String]) {
    let without_numbers = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
    let message = without_numbers(message);
    assert!(fixed.iter().any(|fixed| without_numbers(fixed) == message), "a message of its own: {message:?}");
}

/// A reference is written as it was meant.
///
/// # Panics
/// If reading back what is written makes another.
pub fn assert_round_trip(reference: &Reference) {
    let written = format!("{reference:#}");
    let again =
        Reference::parse(&written, &stores()).unwrap_or_else(|problem| panic!("{written:?}: {problem}"));
    assert_eq!(&again, reference, "{written:?}");
    let short = Reference::parse(&reference.to_string(), &stores()).expect("the short form parses too");
    assert_eq!((&short.source.path, &short.field), (&reference.source.path, &reference.field));
    assert!(!reference.source.path.is_empty(), "a path is not empty");
}

/// Stands for what must never be shown. Repeated, so that a part of it is told too.
pub const CANARY: &str = "c4n4ryc4n4ryc4n4ry";
/// What is looked for.
pub const PART: &str = "c4n4ry";

/// Nothing secret is in a message made from `input`. An input that has the canary in it proves nothing: it may have
/// stood where anybody can read.
///
/// # Panics
/// If there is.
pub fn assert_secretive(message: &str, input: &[u8]) {
    if message.contains(PART) {
        let given = input.windows(PART.len()).any(|part| part == PART.as_bytes());
        assert!(given, "a secret in {message:?}");
    }
}
