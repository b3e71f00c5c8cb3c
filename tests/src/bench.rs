//! The figures: what each costs, beside its target and, where there is one, a floor measured in the same run.

mod figures;
mod floor;
mod publish;
mod rest;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::machine::Machine;
use crate::mount::{self, Namespace, REMEDY};
use figures::Table;

/// Runs all measurements and prints the table.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            figures::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    if let Namespace::None { reason } = mount::enter()? {
        bail!("nothing can be mounted here ({reason}), so there is nothing to measure; {REMEDY}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut table = Table::new(&Machine::this())?;
        publish::overhead(&mut table).await?;
        publish::storm(&mut table).await?;
        rest::memory(&mut table).await?;
        rest::at_rest(&mut table).await?;
        rest::change_arrives(&mut table).await?;
        table.end()
    })
}
