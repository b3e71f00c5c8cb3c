//! A table of figures.

use std::fmt;
use std::io::Write;
use std::time::Duration;

use anyhow::Result;

use crate::machine::Machine;

/// Figures are printed as they are found, under headings of fixed width.
#[derive(Debug)]
pub(super) struct Table {
    rows: u32,
}

impl Table {
    pub(super) fn new(machine: &Machine) -> Result<Self> {
        say(&format!("Countersign {}, {machine}", env!("CARGO_PKG_VERSION")))?;
        if cfg!(debug_assertions) {
            say("a development build: figures of it mean nothing; use `make bench`")?;
        }
        say("")?;
        row("figure", "measured", "target", "floor, or what it is made of")?;
        row(&"-".repeat(46), &"-".repeat(14), &"-".repeat(12), &"-".repeat(40))?;
        Ok(Self { rows: 0 })
    }

    /// One figure.
    pub(super) fn figure(&mut self, name: &str, measured: &str, target: &str, beside: &str) -> Result<()> {
        self.rows += 1;
        row(name, measured, target, beside)
    }

    pub(super) fn end(&self) -> Result<()> {
        say("")?;
        say(&format!("{} figures; none is asserted: what falls short is for people to judge", self.rows))
    }
}

fn row(name: &str, measured: &str, target: &str, beside: &str) -> Result<()> {
    say(format!("{name:<46}  {measured:>14}  {target:>12}  {beside}").trim_end())
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// One line on standard error.
pub(super) fn complain(line: &str) {
    writeln!(std::io::stderr(), "countersign-bench: {line}").ok();
}

/// Times of many tries.
#[derive(Debug, Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that this share of all tries does not exceed, by the nearest rank.
    pub(super) fn percentile(&self, percent: usize) -> Time {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        Time(sorted.get(rank).copied().unwrap_or_default())
    }
}

impl Extend<Duration> for Times {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, times: I) {
        self.0.extend(times);
    }
}

/// A time in the unit that suits it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        let text = match seconds {
            s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
            s if s < 1.0 => format!("{:.2} ms", s * 1e3),
            s => format!("{s:.2} s"),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut times = Times::default();
        times.extend((1..=200).map(Duration::from_millis));
        assert_eq!(times.percentile(50).0, Duration::from_millis(100));
        assert_eq!(times.percentile(99).0, Duration::from_millis(198));
        assert_eq!(times.percentile(100).0, Duration::from_millis(200));
        assert_eq!(Times::default().percentile(50).0, Duration::ZERO);
    }

    #[test]
    fn units_suit() {
        assert_eq!(Time(Duration::from_micros(42)).to_string(), "42 µs");
        assert_eq!(Time(Duration::from_micros(1500)).to_string(), "1.50 ms");
        assert_eq!(Time(Duration::from_millis(2500)).to_string(), "2.50 s");
    }
}
