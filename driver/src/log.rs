//! Logs: one line an event, on standard error, as JSON or text.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::Error;

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Severity {
    /// Failures only.
    Error,
    /// And what an operator should look at.
    Warn,
    /// And what has been done.
    Info,
    /// And how.
    Debug,
    /// And whatever else: the same level can be asked of driver and agent.
    Trace,
}

impl From<Severity> for Level {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Error => Self::ERROR,
            Severity::Warn => Self::WARN,
            Severity::Info => Self::INFO,
            Severity::Debug => Self::DEBUG,
            Severity::Trace => Self::TRACE,
        }
    }
}

/// Sends the log of this process to standard error.
///
/// # Errors
/// [`Error::Log`] when a log has been set up before.
pub fn start(format: Format, severity: Severity) -> Result<(), Error> {
    let level = Level::from(severity);
    // Of the libraries only what goes wrong: their debug lines tell of frames, not of volumes.
    let ours = Targets::new().with_default(Level::WARN.min(level)).with_target("countersign_driver", level);
    let lines =
        tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    match format {
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(false).finish().with(ours).try_init()
        }
        Format::Text => lines.with_ansi(false).finish().with(ours).try_init(),
    }
    .map_err(Error::Log)
}

/// Lets one complaint through in a while and counts the others, so that a thousand volumes without an agent do
/// not fill the log.
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    state: Mutex<Quiet>,
}

#[derive(Debug)]
struct Quiet {
    until: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    /// One complaint in `every`.
    #[must_use]
    pub const fn new(every: Duration) -> Self {
        Self { every, state: Mutex::new(Quiet { until: None, suppressed: 0 }) }
    }

    /// Whether a complaint may be made at `now`, and how many were held back since the last one.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.until.is_some_and(|until| now < until) {
            state.suppressed += 1;
            return None;
        }
        state.until = Some(now + self.every);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_complaint_in_a_while() {
        let throttle = Throttle::new(Duration::from_secs(30));
        let start = Instant::now();
        assert_eq!(throttle.pass(start), Some(0));
        assert_eq!(throttle.pass(start + Duration::from_secs(1)), None);
        assert_eq!(throttle.pass(start + Duration::from_secs(29)), None);
        assert_eq!(throttle.pass(start + Duration::from_secs(30)), Some(2));
        assert_eq!(throttle.pass(start + Duration::from_secs(61)), Some(0));
    }
}
