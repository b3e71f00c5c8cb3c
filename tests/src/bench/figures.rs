//! What the programs that measure have in common: what they can be told, and what they print.

use std::future::Future;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::report::{Report, Row};
use crate::mount::Namespace;

/// Something that can be measured.
pub trait Figure: ValueEnum + Copy + Eq + Send + Sync + 'static {
    /// Its rows.
    fn measure(self, effort: Effort) -> impl Future<Output = Result<Vec<Row>>>;
}

/// What is to be measured, how much of it, and how it is printed.
#[derive(Debug, Clone, Args)]
pub struct Choice<F: Figure> {
    /// Fewer samples and shorter times: for a look, not for a claim.
    #[arg(long)]
    quick: bool,
    /// Measure this figure alone; may be given more than once.
    #[arg(long, value_name = "FIGURE")]
    only: Vec<F>,
    /// Print JSON in place of the table.
    #[arg(long)]
    json: bool,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    quick: bool,
}

impl Effort {
    /// `full`, or `quick` when that was asked for.
    pub fn of<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

impl<F: Figure> Choice<F> {
    /// Measures one figure after the other; `program` says which.
    pub async fn measure(&self, program: &str, namespace: &Namespace) -> Result<Report> {
        let load = load()?;
        let mut rows = Vec::new();
        for &figure in F::value_variants() {
            if self.only.is_empty() || self.only.contains(&figure) {
                let name =
                    figure.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
                say(program, &format!("measuring {name}"));
                rows.extend(figure.measure(Effort { quick: self.quick }).await.context(name)?);
            }
        }
        Ok(Report { place: namespace.to_string(), load, quick: self.quick, rows })
    }

    /// Prints what was measured.
    pub fn print(&self, report: &Report) -> Result<()> {
        let text = if self.json { report.json() } else { report.to_string() };
        writeln!(std::io::stdout(), "{text}").context("standard output")
    }
}

/// The load average of the last minute: on a machine that others keep busy, a p99 says little.
pub fn load() -> Result<String> {
    let load = std::fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    Ok(load.split(' ').next().unwrap_or_default().to_owned())
}

/// How `program` ends.
pub fn exit(program: &str, outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(program, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "progress and errors go beside the table, not into it")]
fn say(program: &str, text: &str) {
    eprintln!("{program}: {text}");
}
