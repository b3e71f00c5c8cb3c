//! Volumes that come and go, and readers that look at all of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use countersign_tests::kubelet::{Kubelet, PodVolume};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::reader::read;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::sleep;

/// The secret that all volumes hold in several shapes.
pub(crate) const SECRET: &str = "sops:payments/soak";
/// Names of a volume's files.
const FILES: [&str; 4] = ["a", "dir/b", "env", "whole.json"];
/// How long a publish may take with processes dying all the time.
const PATIENCE: Duration = Duration::from_secs(90);

/// A place for one volume at a time.
#[derive(Debug, Default)]
struct Slot {
    /// Where the volume is mounted, while readers may look.
    target: RwLock<Option<PathBuf>>,
    /// The newest generation a reader saw in this volume.
    newest: AtomicU64,
}

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) published: u64,
    pub(crate) republished: u64,
    pub(crate) unpublished: u64,
}

#[derive(Debug)]
struct Shared {
    slots: Vec<Slot>,
    finished: AtomicBool,
    readers_done: AtomicBool,
    complaints: Mutex<Vec<String>>,
    published: AtomicU64,
    republished: AtomicU64,
    unpublished: AtomicU64,
}

/// All slots.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Arc<Shared>);

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Shared {
            slots: (0..count).map(|_| Slot::default()).collect(),
            finished: AtomicBool::new(false),
            readers_done: AtomicBool::new(false),
            complaints: Mutex::default(),
            published: AtomicU64::new(0),
            republished: AtomicU64::new(0),
            unpublished: AtomicU64::new(0),
        }))
    }

    /// Threads that read every volume again and again. Each answers how many it has read.
    pub(crate) fn start_readers(&self, count: usize) -> Vec<JoinHandle<u64>> {
        (0..count)
            .map(|_| {
                let shared = Arc::clone(&self.0);
                std::thread::spawn(move || shared.read_all())
            })
            .collect()
    }

    /// One slot's life: a volume is published, republished, taken away, and so on, until told to finish.
    pub(crate) fn live(
        &self,
        index: usize,
        kubelet: Arc<Kubelet>,
        mut random: StdRng,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let shared = Arc::clone(&self.0);
        async move {
            let mut round = 0;
            while !shared.finished.load(Ordering::Relaxed) {
                round += 1;
                let account = format!("account-{}", index % 5);
                let pod = Pod::new("payments", &format!("pod-{index}-{round}"), &account);
                let mut volume = kubelet.volume(&pod, asked());
                let life = Duration::from_millis(random.random_range(300..3000));
                shared.one_life(index, &mut volume, life, &mut random).await?;
            }
            Ok(())
        }
    }

    /// Lets every slot take its volume away and end, and then the readers.
    pub(crate) fn finish(&self) {
        self.0.finished.store(true, Ordering::Relaxed);
        self.0.readers_done.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_complaints(&self) -> bool {
        !self.0.complaints.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(crate) fn complaints(&self) -> String {
        self.0.complaints.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally {
            published: self.0.published.load(Ordering::Relaxed),
            republished: self.0.republished.load(Ordering::Relaxed),
            unpublished: self.0.unpublished.load(Ordering::Relaxed),
        }
    }
}

fn asked() -> Volume {
    Volume::new()
        .secret("a", &format!("{SECRET}#a"))
        .secret("dir/b", &format!("{SECRET}#b"))
        .template("env", "{{ secret(\"sops:payments/soak\").n }} env")
        .secret("whole.json", SECRET)
        .refresh("1s")
}

impl Shared {
    async fn one_life(
        &self,
        index: usize,
        volume: &mut PodVolume,
        life: Duration,
        random: &mut StdRng,
    ) -> Result<()> {
        let slot = self.slots.get(index).context("a slot")?;
        volume.publish(PATIENCE).await.with_context(|| format!("publish of slot {index}"))?;
        self.published.fetch_add(1, Ordering::Relaxed);
        slot.newest.store(0, Ordering::Relaxed);
        *slot.target.write().unwrap_or_else(PoisonError::into_inner) = Some(volume.target());
        let end = tokio::time::Instant::now() + life;
        while tokio::time::Instant::now() < end && !self.finished.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(random.random_range(100..400))).await;
            // It may fail while a process is away, and takes nothing with it when it does.
            if volume.publish_once().await.is_ok() {
                self.republished.fetch_add(1, Ordering::Relaxed);
            }
        }
        // From here on readers don't look.
        *slot.target.write().unwrap_or_else(PoisonError::into_inner) = None;
        volume.unpublish(PATIENCE).await.with_context(|| format!("unpublish of slot {index}"))?;
        self.unpublished.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn read_all(&self) -> u64 {
        let mut reads = 0;
        while !self.readers_done.load(Ordering::Relaxed) {
            for slot in &self.slots {
                let target = slot.target.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(target) = target.as_deref() {
                    reads += 1;
                    if let Err(error) = look(target, &slot.newest) {
                        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
                        complaints.push(format!("{}: {error:#}", target.display()));
                    }
                }
            }
            // Leave some of the processor to those who are read.
            std::thread::sleep(Duration::from_millis(2));
        }
        reads
    }
}

/// One look at a volume: all files there, none empty, all of one generation, and none older than seen before.
fn look(target: &Path, newest: &AtomicU64) -> Result<()> {
    let before = newest.load(Ordering::Relaxed);
    let files = read(target)?;
    let mut generation = None;
    for name in FILES {
        let bytes = files.get(name).with_context(|| format!("{name} is missing"))?;
        let text = std::str::from_utf8(bytes)?;
        let number = if name == "whole.json" {
            let whole: serde_json::Value =
                serde_json::from_str(text).with_context(|| format!("{name} is torn"))?;
            whole.get("n").and_then(serde_json::Value::as_str).context("n")?.to_owned()
        } else {
            text.split(' ').next().unwrap_or_default().to_owned()
        };
        let number: u64 = number.parse().with_context(|| format!("{name} is torn: {} bytes", bytes.len()))?;
        if name == "dir/b" && bytes.len() != 3009 {
            bail!("{name} has {} bytes", bytes.len());
        }
        ensure!(
            *generation.get_or_insert(number) == number,
            "{name} is of {number}, another of {generation:?}"
        );
    }
    let generation = generation.unwrap_or_default();
    ensure!(generation >= before, "generation {generation} after {before}");
    newest.fetch_max(generation, Ordering::Relaxed);
    Ok(())
}
