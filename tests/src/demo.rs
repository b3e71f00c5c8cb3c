//! The demonstration: the whole story of a secret, told while it happens, each claim checked.

mod byhand;
mod carrier;
pub mod show;
mod story;
pub mod transcript;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::mount::{self, Namespace};

/// Shows Countersign at work on this machine, without a cluster; or plays kubelet for processes you run by hand.
#[derive(Debug, Parser)]
#[command(name = "countersign-demo", version)]
struct Arguments {
    /// Show what can be shown where nothing can be mounted: all but the driver.
    #[arg(long)]
    no_mounts: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make what a cluster would give, and a store with a secret in it; print the commands that go on from there.
    Prepare(byhand::Prepare),
    /// Do what kubelet does: publish a volume of a pod, or take it away.
    Kubelet(byhand::Kubelet),
    /// Say how this machine lets us mount: root, user or none.
    Mounts,
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            transcript::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match arguments.command {
        // By hand everything happens in the shell's own namespace.
        Some(Command::Prepare(prepare)) => prepare.run().map(|()| ExitCode::SUCCESS),
        Some(Command::Kubelet(kubelet)) => runtime()?.block_on(kubelet.run()).map(|()| ExitCode::SUCCESS),
        Some(Command::Mounts) => {
            let line = match mount::enter()? {
                Namespace::Root => "root".to_owned(),
                Namespace::User => "user".to_owned(),
                Namespace::None { reason } => format!("none {reason}"),
            };
            transcript::print(&line).map(|()| ExitCode::SUCCESS)
        }
        None => {
            let namespace = if arguments.no_mounts {
                Namespace::None { reason: "--no-mounts was asked for".to_owned() }
            } else {
                mount::enter()?
            };
            runtime()?.block_on(story::tell(&namespace))
        }
    }
}
