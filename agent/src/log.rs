//! Logs: ours at the level asked for, other people's code at `warn` and above, whatever is asked for.
//!
//! Libraries print headers and frames at their lower levels, and tokens travel in those: no level of ours switches
//! that on.

use std::io::stderr;

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt};

/// Target of the lines that say who read what (see [`audit`](crate::audit)).
pub const AUDIT: &str = "countersign::audit";

/// How to log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Form of the log lines, which go to standard error
    #[arg(long, env = "COUNTERSIGN_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    pub log_format: Format,
    /// Least level that is logged: error, warn, info, debug or trace
    #[arg(long, env = "COUNTERSIGN_LOG_LEVEL", default_value_t = LevelFilter::INFO)]
    pub log_level: LevelFilter,
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging for the whole process; with `audited`, [`AUDIT`] lines too.
pub fn start(args: &LogArgs, audited: bool) -> Result<(), TryInitError> {
    let ours = Targets::new()
        .with_target("countersign", args.log_level)
        .with_target(AUDIT, LevelFilter::OFF)
        .with_default(LevelFilter::WARN);
    let layer = fmt::layer().with_writer(stderr);
    let layer = match args.log_format {
        Format::Text => layer.with_ansi(false).boxed(),
        Format::Json => layer.json().flatten_event(true).boxed(),
    };
    let audit = audited.then(|| {
        let only = Targets::new().with_target(AUDIT, LevelFilter::INFO);
        // One object a line whatever the other lines are: these are for machines.
        fmt::layer().with_writer(stderr).json().flatten_event(true).with_filter(only)
    });
    Registry::default().with(layer.with_filter(ours)).with(audit).try_init()
}
