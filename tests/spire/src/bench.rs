//! The figures with SPIRE as the source of identities, each beside what SPIRE's own client takes in the same run.
//!
//! Streams are the agent's own code in this process, asked about real pods: what is timed is the identity and nothing around
//! it. What becomes of a push is seen in the volumes of the release, by inotify.

mod asking;
mod embedded;
mod pushes;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use countersign_tests::bench::figures::load;
use countersign_tests::bench::report::{Report, Row};

use crate::world::{self, World};

/// Measures identities from SPIRE on a node that it starts.
#[derive(Debug, Clone, Copy, Parser)]
#[command(name = "countersign-spire-bench", version)]
struct Arguments {
    /// Fewer samples and shorter times: for a look, not for a claim.
    #[arg(long)]
    quick: bool,
    /// Print JSON in place of the table.
    #[arg(long)]
    json: bool,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Pods with a stream each.
    streams: usize,
    /// Of them, pods that ask one after another.
    alone: usize,
    /// Calls of SPIRE's own client.
    calls: usize,
    /// Pods whose SVIDs are renewed.
    volumes: usize,
    /// Renewals of each.
    renewals: u32,
    /// How long nothing happens.
    rest: Duration,
}

impl Effort {
    const FULL: Self = Self {
        streams: 250,
        alone: 100,
        calls: 100,
        volumes: 10,
        renewals: 12,
        rest: Duration::from_secs(60),
    };
    const QUICK: Self =
        Self { streams: 60, alone: 30, calls: 20, volumes: 5, renewals: 2, rest: Duration::from_secs(10) };
}

/// Runs the program. To be called first in `main`.
pub fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let load = load()?;
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    world::run(&[], async |world| {
        let rows = measure(&world, effort).await?;
        let report = Report { place: "root".to_owned(), load, quick: arguments.quick, rows };
        let text = if arguments.json { report.json() } else { report.to_string() };
        std::io::Write::write_all(&mut std::io::stdout(), format!("{text}\n").as_bytes())
            .context("standard output")
    })
}

async fn measure(world: &Arc<World>, effort: Effort) -> Result<Vec<Row>> {
    let pods = asking::pods(world, effort).await?;
    let mut rows = asking::own_client(world, effort)?;
    rows.extend(asking::broker(world, &pods, effort).await?);
    rows.extend(asking::delegated(world, &pods, effort).await?);
    rows.extend(pushes::measure(world, effort).await?);
    rows.extend(embedded::measure(world, &pods, effort).await?);
    Ok(rows)
}
