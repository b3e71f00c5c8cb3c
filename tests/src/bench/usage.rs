//! What a process uses: memory and processor time, as `/proc` shows it from outside.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::processes::{Process, cpu_time};

/// Resident memory in bytes, from `smaps_rollup`, which is exact where `status` may lag.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// All pages, those of the binary itself included.
    pub resident: u64,
    /// Heap and stacks.
    pub anonymous: u64,
    /// Shared memory that is mapped. Pages of a tmpfs written through descriptors are not.
    pub shared: u64,
}

impl Memory {
    /// Of a process.
    pub fn of(process: &Process) -> Result<Self> {
        let file = format!("/proc/{}/smaps_rollup", process.pid());
        Self::parse(&fs::read_to_string(&file).context(file)?)
    }

    fn parse(text: &str) -> Result<Self> {
        let bytes = |name: &str| {
            let value =
                text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.strip_suffix("kB"));
            let kib: u64 = value.with_context(|| format!("no {name} in smaps_rollup"))?.trim().parse()?;
            Ok::<_, anyhow::Error>(kib * 1024)
        };
        Ok(Self { resident: bytes("Rss")?, anonymous: bytes("Anonymous")?, shared: bytes("Pss_Shmem")? })
    }
}

/// Processor time used up to now.
#[derive(Debug, Clone)]
pub struct Processor {
    /// Of each thread, in nanoseconds of the scheduler's.
    threads: BTreeMap<String, Duration>,
    /// Of the process, threads that have ended included, in ticks of 10 ms.
    ticks: Duration,
    /// Time its threads were ready to run and had no processor.
    waited: Duration,
    /// How often its threads were given a processor.
    turns: u64,
}

impl Processor {
    /// Of a process.
    pub fn of(process: &Process) -> Result<Self> {
        Self::of_threads(process.pid(), |_| true)
    }

    /// Of those threads of a process whose name is `chosen`.
    pub fn of_threads(pid: u32, chosen: impl Fn(&str) -> bool) -> Result<Self> {
        let mut threads = BTreeMap::new();
        let (mut waited, mut turns) = (0, 0);
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?;
            let read = |file| fs::read_to_string(thread.path().join(file));
            // One that has ended since the directory was read.
            let (Ok(name), Ok(text)) = (read("comm"), read("schedstat")) else { continue };
            if !chosen(name.trim_end()) {
                continue;
            }
            let mut numbers = text.split_whitespace().map(str::parse::<u64>);
            let mut next = |what: &'static str| numbers.next().context(what)?.context(what);
            let nanoseconds = next("time on a processor")?;
            waited += next("time waiting for one")?;
            turns += next("times given one")?;
            let name = thread.file_name().to_string_lossy().into_owned();
            threads.insert(name, Duration::from_nanos(nanoseconds));
        }
        Ok(Self { threads, ticks: cpu_time(pid)?, waited: Duration::from_nanos(waited), turns })
    }

    /// Time spent ready to run without a processor, and turns on one, since `earlier`. These are the machine's doing:
    /// how long a turn is waited for depends on who else is there.
    pub fn waits_since(&self, earlier: &Self) -> (Duration, u64) {
        (self.waited.saturating_sub(earlier.waited), self.turns.saturating_sub(earlier.turns))
    }

    /// Used since `earlier`: by the scheduler's count, or by ticks where a thread took its count with it.
    pub fn since(&self, earlier: &Self) -> Duration {
        let total = |of: &Self| of.threads.values().sum::<Duration>();
        if !self.threads.is_empty() && earlier.threads.keys().all(|thread| self.threads.contains_key(thread))
        {
            total(self).saturating_sub(total(earlier))
        } else {
            self.ticks.saturating_sub(earlier.ticks)
        }
    }
}

/// Thousandths of one core.
pub fn millicores(used: Duration, window: Duration) -> f64 {
    used.as_secs_f64() / window.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "555-777 ---p 0 00:00 0 [rollup]\nRss:    4 kB\nPss_Shmem:  0 kB\nAnonymous:   2 kB\n";
        let memory = Memory::parse(text).unwrap();
        assert_eq!((memory.resident, memory.anonymous, memory.shared), (4096, 2048, 0));
        assert!(Memory::parse("Rss: 4 kB\n").is_err());
    }

    #[test]
    fn a_thread_that_ended_leaves_the_ticks() {
        let at = |threads: &[(&str, u64)], ticks| Processor {
            threads: threads.iter().map(|&(name, ns)| (name.to_owned(), Duration::from_nanos(ns))).collect(),
            ticks: Duration::from_millis(ticks),
            waited: Duration::ZERO,
            turns: 0,
        };
        let earlier = at(&[("1", 100), ("2", 50)], 10);
        assert_eq!(at(&[("1", 150), ("2", 60), ("3", 5)], 30).since(&earlier), Duration::from_nanos(65));
        assert_eq!(at(&[("1", 150), ("3", 5)], 30).since(&earlier), Duration::from_millis(20));
    }
}
