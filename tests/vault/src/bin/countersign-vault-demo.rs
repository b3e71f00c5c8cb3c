//! `make demo STORE=vault`.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_vault_tests::demo::main()
}
