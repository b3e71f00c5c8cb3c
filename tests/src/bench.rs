//! The figures: what Countersign costs on this machine, each beside its target and beside its floor, which is what
//! the same machine takes in the same run for the least that has to be done.

mod bare;
mod change;
mod load;
mod memory;
mod publish;
pub mod report;
mod republish;
mod rest;
mod storm;
pub mod times;
pub mod usage;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::mount::{self, Namespace, REMEDY};
use report::{Report, Row};

/// Measures Countersign on this machine and prints each figure beside its target and its floor.
#[derive(Debug, Clone, Parser)]
#[command(name = "countersign-bench", version)]
struct Arguments {
    /// Fewer samples and a shorter time at rest: for a look, not for a claim.
    #[arg(long)]
    quick: bool,
    /// Measure this figure alone; may be given more than once.
    #[arg(long, value_name = "FIGURE")]
    only: Vec<Figure>,
    /// Print JSON in place of the table.
    #[arg(long)]
    json: bool,
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

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    quick: bool,
}

impl Effort {
    /// `full`, or `quick` when that was asked for.
    fn of<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

impl Figure {
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
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let namespace = mount::enter()?;
    if let Namespace::None { reason } = &namespace {
        bail!("nothing can be measured where nothing can be mounted ({reason}); {REMEDY}");
    }
    // One thread: what is measured shall not wait for the threads of who measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        tokio::select! {
            report = measure(arguments, &namespace) => report,
            signal = interrupted() => signal.and_then(|()| bail!("interrupted")),
        }
    })?;
    let text = if arguments.json { report.json() } else { report.to_string() };
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

async fn measure(arguments: &Arguments, namespace: &Namespace) -> Result<Report> {
    let mut rows = Vec::new();
    let load = std::fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    for &figure in Figure::value_variants() {
        if arguments.only.is_empty() || arguments.only.contains(&figure) {
            let name =
                figure.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            say(&format!("measuring {name}"));
            rows.extend(figure.measure(Effort { quick: arguments.quick }).await.context(name)?);
        }
    }
    Ok(Report { place: namespace.to_string(), load, quick: arguments.quick, rows })
}

/// What runs ends with what measures it, in order: processes are killed, mounts and directories removed.
async fn interrupted() -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

#[expect(clippy::print_stderr, reason = "progress and errors go beside the table, not into it")]
fn say(text: &str) {
    eprintln!("countersign-bench: {text}");
}
