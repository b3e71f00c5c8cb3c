//! The demonstration with a real Vault: a pod logs in as itself, told while it happens, each claim checked.

mod story;

use std::process::ExitCode;

use anyhow::{Result, bail};
use countersign_tests::demo::transcript::complain;
use countersign_tests::mount::{self, Namespace, REMEDY};

/// Runs the program.
pub fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let namespace = mount::enter()?;
    if let Namespace::None { reason } = &namespace {
        bail!("this machine lets us mount nothing ({reason}); {REMEDY}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(story::tell(&namespace))
}
