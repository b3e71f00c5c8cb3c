//! `make vault-bench`.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_vault_tests::bench::main()
}
