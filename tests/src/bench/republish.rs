//! One republish with nothing to do: the same request again, for a volume that is mounted and fresh.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::Effort;
use super::load::{Load, NEVER};
use super::report::{Quantity, Row};
use super::times::Times;
use super::usage::Memory;

/// Calls before the first that counts.
const WARM_UP: usize = 100;

pub(super) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let mut load = Load::start(Some(NEVER)).await?;
    load.grow_to(1).await?;
    let volume = load.volumes.first().context("a volume")?;
    let request = load.node.kubelet.publish_request(&volume.pod, &volume.volume)?;
    let calls = load.calls()?;
    let written = async || load.counter("countersign_files_written_total").await;

    let (mut probes, mut republishes) = (Vec::new(), Vec::new());
    let mut start = None;
    for round in 0..WARM_UP + effort.of(3000, 500) {
        if round == WARM_UP {
            let [driver, _] = load.processes()?;
            start = Some((Watch::on(&volume.target())?, written().await?, Memory::of(driver)?));
        }
        let probe = calls.probe().await?;
        let republish = calls.publish(request.clone()).await.context("a republish")?;
        if round >= WARM_UP {
            probes.push(probe);
            republishes.push(republish);
        }
    }
    let (watch, written_before, memory_before) = start.context("rounds that count")?;
    let events = watch.events()?;
    let files_written = written().await? - written_before;
    let [driver, _] = load.processes()?;
    let grown = Memory::of(driver)?.anonymous.saturating_sub(memory_before.anonymous);
    load.end().await?;

    let (probes, republishes) = (Times::of(probes)?, Times::of(republishes)?);
    let at = |times: &Times, percent| Quantity::Time(times.percentile(percent));
    let beyond = republishes.median().saturating_sub(probes.median());
    Ok(vec![
        Row::new("republish beyond the connection, p50", Quantity::Time(beyond))
            .target(Quantity::Time(Duration::from_micros(100)))
            .remark("republish p50 less Probe p50"),
        Row::new("republish, p50", at(&republishes, 50))
            .floor(at(&probes, 50), "Probe")
            .remark(format!("{} republishes, the connection included", republishes.count())),
        Row::new("republish, p99", at(&republishes, 99)).floor(at(&probes, 99), "Probe"),
        Row::new("republish, events in the volume", Quantity::Count(events))
            .target(Quantity::Count(0))
            .floor(Quantity::Count(0), "nothing to do")
            .remark(format!("inotify on the volume; the agent counts {files_written} files written")),
        Row::new("republish, growth of the driver's heap", Quantity::Bytes(grown))
            .floor(Quantity::Bytes(0), "nothing to keep")
            .remark("anonymous memory, over all of them; single allocations are not measured from outside"),
    ])
}

/// Sees every change to a volume's directories, through whichever mount it is made.
struct Watch {
    events: OwnedFd,
}

impl Watch {
    fn on(volume: &Path) -> Result<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::MOVE
            | WatchFlags::CLOSE_WRITE;
        for directory in [volume.to_owned(), volume.join("..data")] {
            inotify::add_watch(&events, &directory, changes)
                .with_context(|| directory.display().to_string())?;
        }
        Ok(Self { events })
    }

    /// How many there were.
    fn events(self) -> Result<u64> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.events, &mut buffer);
        let mut seen = 0;
        loop {
            match reader.next() {
                Ok(_) => seen += 1,
                Err(Errno::WOULDBLOCK) => return Ok(seen),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_swap_of_generations_is_seen() {
        let volume = tempfile::tempdir().unwrap();
        let at = |name: &str| volume.path().join(name);
        fs::create_dir(at("..1")).unwrap();
        std::os::unix::fs::symlink("..1", at("..data")).unwrap();
        assert_eq!(Watch::on(volume.path()).unwrap().events().unwrap(), 0);
        let watch = Watch::on(volume.path()).unwrap();
        std::os::unix::fs::symlink("..1", at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
        assert_eq!(watch.events().unwrap(), 3);
    }
}
