//! What machine a figure was measured on.

use std::fmt;
use std::fs;

/// Name of the processor, its cores, memory and kernel.
#[derive(Debug, Clone)]
pub struct Machine {
    processor: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
}

impl Machine {
    /// This machine, as far as `/proc` shows it.
    pub fn this() -> Self {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal").and_then(|text| {
            let kib: u64 = text.trim_end_matches("kB").trim().parse().ok()?;
            Some(kib / 1024)
        });
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: field("/proc/cpuinfo", "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            memory_mib: memory.unwrap_or_default(),
            kernel: kernel.trim().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, memory_mib, kernel } = self;
        write!(f, "{processor}, {cores} cores, {memory_mib} MiB, Linux {kernel}")
    }
}
