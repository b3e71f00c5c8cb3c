//! Shows Countersign at work on one machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_tests::demo::main()
}
