//! Everything a user of a cluster is promised, on a real one: with `KUBECONFIG` on that one, else on one of our own.

#![expect(clippy::indexing_slicing, reason = "what is missing fails the test")]

mod api;
mod ask;
mod budget;
mod change;
mod fault;
mod gone;
mod many;
mod release;
mod restart;
mod roll;
mod secrecy;
mod signal;
mod wait;

use std::process::ExitCode;

use anyhow::Result;

fn main() -> Result<ExitCode> {
    let mut cases = ask::cases();
    cases.extend(wait::cases());
    cases.extend(change::cases());
    cases.extend(gone::cases());
    cases.extend(many::cases());
    cases.extend(release::cases());
    cases.extend(restart::cases());
    cases.extend(roll::cases());
    cases.extend(fault::cases());
    cases.extend(api::cases());
    cases.extend(budget::cases());
    cases.extend(secrecy::cases());
    cases.extend(signal::cases());
    countersign_cluster::world::main(cases)
}
