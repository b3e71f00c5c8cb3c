//! A one-node cluster with the chart installed: for a look around, or to measure on.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use countersign_cluster::bench;
use countersign_cluster::cluster::{Cluster, Options};
use countersign_cluster::namespace::{Entered, enter};
use countersign_cluster::world::World;

/// Starts a one-node Kubernetes of real parts in namespaces of its own.
#[derive(Debug, Parser)]
#[command(name = "countersign-cluster", version)]
struct CommandLine {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Install the chart and start a shell with KUBECONFIG set; the cluster ends with it
    Shell {
        /// Start the cluster alone
        #[arg(long)]
        bare: bool,
        /// Arguments of the shell, such as a script
        arguments: Vec<String>,
    },
    /// Measure, and print the figures beside those of pods with an emptyDir
    Bench,
}

fn main() -> Result<ExitCode> {
    let line = CommandLine::parse();
    let place = match enter()? {
        Entered::Inside(place) => place,
        Entered::Ended(code) => return Ok(code),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let options = Options::usual(Duration::from_secs(60))?;
    let cluster = runtime.block_on(Cluster::start(&place, options))?;
    match line.what {
        What::Bench => {
            runtime.block_on(bench::run(cluster, &place.directory))?;
            Ok(ExitCode::SUCCESS)
        }
        What::Shell { bare: true, arguments } => shell(&cluster, &arguments),
        What::Shell { bare: false, arguments } => {
            let world = runtime.block_on(World::new(
                Some(cluster),
                &place.directory,
                "info",
                &serde_json::json!({}),
            ))?;
            shell(world.node()?, &arguments)
        }
    }
}

fn shell(cluster: &Cluster, arguments: &[String]) -> Result<ExitCode> {
    let tools = countersign_cluster::tools::tool("kubectl")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let beside = tools.parent().map(|directory| directory.display().to_string()).unwrap_or_default();
    let status = Command::new(std::env::var("SHELL").unwrap_or_else(|_| "sh".into()))
        .args(arguments)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("PATH", format!("{beside}:{path}"))
        .status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
