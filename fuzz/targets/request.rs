//! A volume's attributes: keys and values in turn, each ended by a zero byte.
#![no_main]

use std::collections::BTreeSet;

use countersign_agent::request::Request;
use countersign_fuzz::{assert_readable, assert_round_trip, stores};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let parts: Vec<_> = text.split('\0').collect();
    let attributes = parts.chunks(2).map(|pair| (pair[0], pair.get(1).copied().unwrap_or_default()));
    match Request::parse(attributes, &stores()) {
        Ok(request) => assert_sound(&request),
        Err(error) => assert_readable(&error.to_string()),
    }
});

/// What nobody checks again once a request is parsed.
fn assert_sound(request: &Request) {
    assert!(!request.files.is_empty(), "a volume has a file");
    let paths: Vec<_> = request.files.iter().map(|file| file.path.as_str()).collect();
    assert!(paths.is_sorted(), "{paths:?}");
    let files: BTreeSet<_> = paths.iter().copied().collect();
    assert_eq!(files.len(), paths.len(), "a path twice in {paths:?}");
    for file in &request.files {
        for component in file.path.components() {
            assert!((1..=255).contains(&component.len()), "{component:?}");
            assert!(component != "." && !component.starts_with(".."), "{component:?}");
            assert!(!component.contains(['/', '\0']), "{component:?}");
        }
        for (end, _) in file.path.as_str().match_indices('/') {
            assert!(
                !files.contains(&file.path.as_str()[..end]),
                "a file where {} needs a directory",
                file.path
            );
        }
        assert!(file.mode.is_none_or(|mode| mode & !0o777 == 0), "mode {:?}", file.mode);
    }
    request.references().for_each(assert_round_trip);
    assert!(request.audiences().all(|audience| !audience.is_empty()), "an audience is not empty");
}
