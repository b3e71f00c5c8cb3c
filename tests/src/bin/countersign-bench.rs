//! Measures, and prints the figures.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_tests::bench::main()
}
