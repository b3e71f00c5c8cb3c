//! Starts the cluster and, for as long as it runs, a shell in it.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Result;
use countersign_cluster::cluster::{Cluster, Options};
use countersign_cluster::namespace::{Entered, enter};

fn main() -> Result<ExitCode> {
    let place = match enter()? {
        Entered::Inside(place) => place,
        Entered::Ended(code) => return Ok(code),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let options = Options { sync: Duration::from_secs(60), verbosity: 2 };
    let cluster = runtime.block_on(Cluster::start(&place, options))?;
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let status = Command::new("sh").args(arguments).env("KUBECONFIG", cluster.kubeconfig()).status()?;
    drop(cluster);
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
