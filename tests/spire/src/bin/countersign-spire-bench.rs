//! `make spire-bench`.

use std::process::ExitCode;

use anyhow::Result;

fn main() -> Result<ExitCode> {
    countersign_spire_tests::bench::main()
}
