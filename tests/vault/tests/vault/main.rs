//! Countersign against a real Vault, and against a server that lies.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_tests::harness::main(Vec::new())
}
