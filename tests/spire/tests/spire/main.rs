//! What pods get from Countersign where SPIRE says who they are.

#![expect(clippy::indexing_slicing, reason = "what is missing fails the test")]

mod controller;
mod faults;
mod life;
mod readers;
mod rotation;
mod sources;
mod stores;

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

fn main() -> Result<ExitCode> {
    let secrets = [
        ("first.db", json!({"password": "hunter2"})),
        ("server.db", json!({"password": "for-server"})),
        ("withdrawn.db", json!({"password": "for-withdrawn"})),
    ];
    let mut cases = life::cases();
    cases.extend(rotation::cases());
    cases.extend(readers::cases());
    cases.extend(sources::cases());
    cases.extend(stores::cases());
    cases.extend(controller::cases());
    cases.extend(faults::cases());
    countersign_spire_tests::world::main(cases, &secrets)
}
