//! The figures: what Countersign costs on this machine, each beside its target and beside its floor, which is what
//! the same machine takes in the same run for the least that has to be done.

mod bare;
pub mod calls;
mod change;
pub mod figures;
mod load;
mod memory;
mod publish;
pub mod report;
mod republish;
mod rest;
mod storm;
pub mod times;
pub mod usage;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::mount::{self, Namespace, REMEDY};
use figures::{Choice, Effort, exit};
use report::Row;

const NAME: &str = "countersign-bench";

/// Measures Countersign on this machine and prints each figure beside its target and its floor.
#[derive(Debug, Clone, Parser)]
#[command(name = NAME, version)]
struct Arguments {
    #[command(flatten)]
    choice: Choice<Figure>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// What a publish takes beyond the answers of store and identity.
    Publish,
    /// 250 volumes at once.
    Storm,
    /// Memory by the number of volumes.
    Memory,
    /// Processor time at rest.
    Rest,
    /// From a change at the store to the new bytes in the file.
    Change,
    /// A republish with nothing to do.
    Republish,
}

impl figures::Figure for Figure {
    async fn measure(self, effort: Effort) -> Result<Vec<Row>> {
        match self {
            Self::Publish => publish::measure(effort).await,
            Self::Storm => storm::measure().await,
            Self::Memory => memory::measure(effort).await,
            Self::Rest => rest::measure(effort).await,
            Self::Change => change::measure(effort).await,
            Self::Republish => republish::measure(effort).await,
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    exit(NAME, run(&Arguments::parse().choice))
}

fn run(choice: &Choice<Figure>) -> Result<()> {
    let namespace = mount::enter()?;
    if let Namespace::None { reason } = &namespace {
        bail!("nothing can be measured where nothing can be mounted ({reason}); {REMEDY}");
    }
    // One thread: what is measured shall not wait for the threads of who measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        tokio::select! {
            report = choice.measure(NAME, &namespace) => report,
            signal = interrupted() => signal.and_then(|()| bail!("interrupted")),
        }
    })?;
    choice.print(&report)
}

/// What runs ends with what measures it, in order: processes are killed, mounts and directories removed.
async fn interrupted() -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}
