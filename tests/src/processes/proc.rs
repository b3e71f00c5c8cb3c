//! What `/proc` shows of a process.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

/// Rights and memory of a process, from `/proc/<pid>/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// `R`, `S`, `T` and so on.
    pub state: char,
    /// Effective uid.
    pub uid: u32,
    /// Capabilities in effect.
    pub effective: u64,
    /// Capabilities that can ever be had.
    pub bounding: u64,
    /// Whether `exec` can raise rights.
    pub no_new_privileges: bool,
    /// Seccomp mode: 2 is a filter.
    pub seccomp: u32,
    /// Resident memory in KiB.
    pub resident_kib: u64,
}

impl Status {
    /// Of a process.
    pub fn of(pid: u32) -> Result<Self> {
        let file = format!("/proc/{pid}/status");
        Self::parse(&fs::read_to_string(&file).context(file)?)
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.map(str::trim).with_context(|| format!("no {name} in the status of a process"))
        };
        let hexadecimal = |name: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(field(name)?, 16)?);
        let kib = field("VmRSS").ok().and_then(|text| text.strip_suffix("kB")?.trim().parse().ok());
        Ok(Self {
            state: field("State")?.chars().next().context("a state")?,
            uid: field("Uid")?.split_whitespace().nth(1).context("an effective uid")?.parse()?,
            effective: hexadecimal("CapEff")?,
            bounding: hexadecimal("CapBnd")?,
            no_new_privileges: field("NoNewPrivs")? == "1",
            seccomp: field("Seccomp")?.parse()?,
            resident_kib: kib.unwrap_or_default(),
        })
    }
}

/// An open descriptor and what it refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Descriptor {
    /// Its number.
    pub number: u32,
    /// What the kernel calls it, such as `socket:[123]` or a path.
    pub target: PathBuf,
}

impl Descriptor {
    /// All of a process.
    pub fn all(pid: u32) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            // One that was closed since the directory was read.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let number = entry.file_name().to_string_lossy().parse()?;
            found.push(Self { number, target });
        }
        found.sort();
        Ok(found)
    }
}

/// Processor time a process has used, user and system, in ticks of 10 ms.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may have blanks.
    let fields = text.rsplit_once(") ").context("a name in brackets")?.1;
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
