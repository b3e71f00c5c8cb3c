//! Measures Countersign on one machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_tests::bench::main()
}
