//! The figures of the store `vault`: each beside its target, and beside what Vault itself takes in the same run.

mod allocated;
mod lease;
mod publish;
mod setting;
mod steady;
mod storm;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use countersign_tests::bench::report::{Report, Row};
use countersign_tests::mount::{self, Namespace};

/// Measures the store `vault` on this machine, against a Vault that it starts.
#[derive(Debug, Clone, Parser)]
#[command(name = "countersign-vault-bench", version)]
struct Arguments {
    /// Fewer samples and shorter times: for a look, not for a claim.
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
    /// What a publish takes beyond Vault's answers.
    Publish,
    /// 250 volumes of 25 identities at once.
    Storm,
    /// 250 volumes whose secrets do not change; and one that does.
    Steady,
    /// From a pod's end to its database user's.
    Lease,
    /// What a refresh that changes nothing allocates.
    Allocated,
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
            Self::Steady => steady::measure(effort).await,
            Self::Lease => lease::measure(effort).await,
            Self::Allocated => allocated::measure(effort).await,
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let namespace = mount::enter()?;
    if namespace != Namespace::Root {
        bail!("root is needed: PostgreSQL runs as somebody else; here: {namespace}");
    }
    // One thread measures. The other is for what answers meanwhile: the way to the issuer's keys is ours too, and Vault
    // asks for them while the page's commands are waited for.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let report = runtime.block_on(measure(arguments, &namespace))?;
    let text = if arguments.json { report.json() } else { report.to_string() };
    std::io::Write::write_all(&mut std::io::stdout(), format!("{text}\n").as_bytes())
        .context("standard output")
}

async fn measure(arguments: &Arguments, namespace: &Namespace) -> Result<Report> {
    let load = std::fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let mut rows = Vec::new();
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

#[expect(clippy::print_stderr, reason = "progress and errors go beside the table, not into it")]
fn say(text: &str) {
    eprintln!("countersign-vault-bench: {text}");
}
