//! The table, and the same as JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::Machine;

/// Something measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quantity {
    /// A time.
    Time(Duration),
    /// An amount of memory.
    Bytes(u64),
    /// A rate.
    PerSecond(f64),
    /// A number of things.
    Count(u64),
    /// Processor time by time, in thousandths of one core.
    Millicores(f64),
}

impl Quantity {
    /// The plain number and its unit.
    fn number(self) -> (f64, &'static str) {
        #[expect(clippy::cast_precision_loss, reason = "none of our bytes and counts has 53 bits")]
        match self {
            Self::Time(time) => (time.as_secs_f64(), "seconds"),
            Self::Bytes(bytes) => (bytes as f64, "bytes"),
            Self::PerSecond(rate) => (rate, "per second"),
            Self::Count(count) => (count as f64, "count"),
            Self::Millicores(share) => (share, "millicores"),
        }
    }

    fn json(self) -> Value {
        let (value, unit) = self.number();
        json!({"value": value, "unit": unit})
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, _) = self.number();
        match self {
            Self::Time(_) if number >= 1.0 => write!(f, "{number:.2} s"),
            Self::Time(_) if number >= 1e-3 => write!(f, "{:.2} ms", number * 1e3),
            Self::Time(_) => write!(f, "{:.0} µs", number * 1e6),
            Self::Bytes(_) if number < f64::from(1 << 20) => write!(f, "{:.1} KiB", number / 1024.0),
            Self::Bytes(_) => write!(f, "{:.2} MiB", number / f64::from(1 << 20)),
            Self::PerSecond(_) => write!(f, "{number:.0}/s"),
            Self::Count(count) => write!(f, "{count}"),
            Self::Millicores(_) => write!(f, "{number:.2} m"),
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    what: String,
    measured: Quantity,
    target: Option<Quantity>,
    floor: Option<(Quantity, &'static str)>,
    remark: String,
}

impl Row {
    /// What was measured.
    pub fn new(what: impl Into<String>, measured: Quantity) -> Self {
        Self { what: what.into(), measured, target: None, floor: None, remark: String::new() }
    }

    /// What it is to be at most.
    #[must_use]
    pub fn target(mut self, most: Quantity) -> Self {
        self.target = Some(most);
        self
    }

    /// What the machine takes for the least that has to be done, and what that is.
    #[must_use]
    pub fn floor(mut self, floor: Quantity, what: &'static str) -> Self {
        self.floor = Some((floor, what));
        self
    }

    /// How to read it.
    #[must_use]
    pub fn remark(mut self, remark: impl Into<String>) -> Self {
        self.remark = remark.into();
        self
    }

    /// Whether the target is met, if there is one.
    fn met(&self) -> Option<bool> {
        self.target.map(|most| self.measured.number().0 <= most.number().0)
    }

    fn cells(&self) -> [String; COLUMNS] {
        let target = match (self.target, self.met()) {
            (Some(most), Some(true)) => format!("≤ {most}"),
            (Some(most), _) => format!("≤ {most} MISSED"),
            (None, _) => "-".to_owned(),
        };
        let floor = self.floor.map_or_else(|| "-".to_owned(), |(floor, what)| format!("{floor} ({what})"));
        [self.what.clone(), self.measured.to_string(), target, floor, self.remark.clone()]
    }

    fn json(&self) -> Value {
        json!({
            "figure": self.what,
            "measured": self.measured.json(),
            "target": self.target.map(Quantity::json),
            "met": self.met(),
            "floor": self.floor.map(|(floor, _)| floor.json()),
            "floorOf": self.floor.map(|(_, what)| what),
            "remark": self.remark,
        })
    }
}

const COLUMNS: usize = 5;
const HEAD: [&str; COLUMNS] = ["figure", "measured", "target", "floor", "remark"];

/// All that one run measured.
#[derive(Debug)]
pub struct Report {
    /// With which rights.
    pub place: String,
    /// The machine's load before anything was measured: 1.0 is one core kept busy by others.
    pub load: String,
    /// Whether fewer samples were taken.
    pub quick: bool,
    /// The figures.
    pub rows: Vec<Row>,
}

impl Report {
    /// How this program was built; the others lie beside it.
    fn profile() -> &'static str {
        if cfg!(debug_assertions) { "debug build: not for comparison" } else { "release build" }
    }

    /// As JSON.
    pub fn json(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(Row::json).collect();
        let machine = Machine::this().to_string();
        let report = json!({
            "machine": machine,
            "profile": Self::profile(),
            "place": self.place,
            "loadBefore": self.load,
            "quick": self.quick,
            "figures": rows,
        });
        format!("{report:#}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quick = if self.quick { "; quick: fewer samples" } else { "" };
        let (machine, profile) = (Machine::this(), Self::profile());
        writeln!(f, "{machine}; {profile}; {}; load before: {}{quick}\n", self.place, self.load)?;
        let mut lines = vec![HEAD.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..COLUMNS).map(width).collect();
        lines.insert(
            1,
            std::array::from_fn(|column| "-".repeat(widths.get(column).copied().unwrap_or_default())),
        );
        for line in &lines {
            let padded: Vec<_> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(f, "{}", padded.join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_well() {
        let time = |micros| Quantity::Time(Duration::from_micros(micros)).to_string();
        assert_eq!([time(87), time(1500), time(2_346_000)], ["87 µs", "1.50 ms", "2.35 s"]);
        assert_eq!(Quantity::Bytes(6 << 20).to_string(), "6.00 MiB");
        assert_eq!(Quantity::Bytes(1536).to_string(), "1.5 KiB");
    }

    #[test]
    fn a_missed_target_is_seen() {
        let row =
            Row::new("x", Quantity::Count(3)).target(Quantity::Count(2)).floor(Quantity::Count(1), "one");
        assert_eq!(row.cells(), ["x", "3", "≤ 2 MISSED", "1 (one)", ""]);
        assert_eq!(row.json()["met"], false);
        let report =
            Report { place: "here".to_owned(), load: "0.00".to_owned(), quick: true, rows: vec![row] };
        let table = report.to_string();
        let line = table.lines().find(|line| line.starts_with('x')).unwrap();
        let head = table.lines().find(|line| line.starts_with("figure")).unwrap();
        assert_eq!(line.find("(one)").map(|_| line.find('3')), Some(head.find("measured")));
        assert!(table.contains("quick"), "{table}");
    }
}
