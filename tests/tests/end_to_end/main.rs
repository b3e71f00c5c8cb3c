//! Everything a pod and an operator are promised, on the real binaries.

#![expect(clippy::indexing_slicing, reason = "what is missing fails the test")]

mod confinement;
mod demo;
mod publish;
mod refresh;
mod refusal;
mod restart;
mod secrecy;
mod signals;
mod trouble;
mod unpublish;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut cases = publish::cases();
    cases.extend(refresh::cases());
    cases.extend(refusal::cases());
    cases.extend(restart::cases());
    cases.extend(unpublish::cases());
    cases.extend(trouble::cases());
    cases.extend(confinement::cases());
    cases.extend(secrecy::cases());
    cases.extend(signals::cases());
    cases.extend(demo::cases());
    countersign_tests::harness::main(cases)
}
