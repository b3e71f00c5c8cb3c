//! The figures of the store `vault`: each beside its target, and beside what Vault itself takes in the same run.

mod allocated;
mod lease;
mod publish;
mod setting;
mod steady;
mod storm;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use countersign_tests::bench::figures::{self, Choice, Effort, exit};
use countersign_tests::bench::report::Row;
use countersign_tests::mount::{self, Namespace};

const NAME: &str = "countersign-vault-bench";

/// Measures the store `vault` on this machine, against a Vault that it starts.
#[derive(Debug, Clone, Parser)]
#[command(name = NAME, version)]
struct Arguments {
    #[command(flatten)]
    choice: Choice<Figure>,
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

impl figures::Figure for Figure {
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
    exit(NAME, run(&Arguments::parse().choice))
}

fn run(choice: &Choice<Figure>) -> Result<()> {
    let namespace = mount::enter()?;
    if namespace != Namespace::Root {
        bail!("root is needed: PostgreSQL runs as somebody else; here: {namespace}");
    }
    // One thread measures. The other is for what answers meanwhile: the way to the issuer's keys is ours too, and Vault
    // asks for them while the page's commands are waited for.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    choice.print(&runtime.block_on(choice.measure(NAME, &namespace))?)
}
