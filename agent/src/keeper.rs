//! The one owner of all volumes: it decides when a volume's turn is, and nothing else touches one.
//!
//! A volume is in its slot or in its turn, never in both. What comes for it meanwhile waits in the slot. Forgetting
//! it drops the turn; a turn writes files without a pause between two steps, so a swap is never left half done.

mod handle;
mod heard;
mod note;
mod slot;

use std::collections::HashMap;
use std::sync::Arc;

use countersign_proto::signal::ON_CHANGE;
use futures_util::StreamExt;
pub use handle::Handle;
use handle::{Command, Reply};
use heard::replaced;
use note::note;
use slot::Slot;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;
use tracing::{info, warn};

use crate::Error;
use crate::files::Directory;
use crate::kubernetes::events::Recorder;
use crate::metrics::Metrics;
use crate::notify::{Notice, Notifier};
use crate::sources::Sources;
use crate::turn::{Turned, World, unbroken};
use crate::volume::{News, Publish, Volume, VolumeId};

/// Owns the volumes; [`Keeper::run`] is its life.
#[derive(Debug)]
pub struct Keeper<S> {
    world: Arc<World<S>>,
    metrics: Arc<Metrics>,
    events: Recorder,
    notifier: Notifier,
    inbox: mpsc::Receiver<Command>,
    slots: HashMap<VolumeId, Slot>,
    timers: DelayQueue<VolumeId>,
    turns: JoinSet<(Volume, Turned)>,
}

impl<S: Sources> Keeper<S> {
    /// A keeper without volumes, and the way to speak to it.
    #[must_use]
    pub fn new(world: Arc<World<S>>, metrics: Arc<Metrics>) -> (Self, Handle) {
        let (outbox, inbox) = mpsc::channel(256);
        let keeper = Self {
            world,
            metrics,
            events: Recorder::off(),
            notifier: Notifier::off(),
            inbox,
            slots: HashMap::new(),
            timers: DelayQueue::new(),
            turns: JoinSet::new(),
        };
        (keeper, Handle::new(outbox))
    }

    /// Tells of pods by `events`.
    #[must_use]
    pub fn telling(self, events: Recorder) -> Self {
        Self { events, ..self }
    }

    /// Tells pods of changes by `notifier`.
    #[must_use]
    pub fn notifying(self, notifier: Notifier) -> Self {
        Self { notifier, ..self }
    }

    /// Keeps the volumes until `shutdown`. Files stay as they are.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let world = Arc::clone(&self.world);
        let mut roots = self.world.sources.roots();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = replaced(&mut roots) => self.other_roots(),
                Some(ended) = self.turns.join_next_with_id(), if !self.turns.is_empty() => {
                    // One that was aborted has nothing to say: its volume was forgotten.
                    if let Ok((task, (volume, turned))) = ended {
                        self.turned(task, volume, turned);
                    }
                }
                Some(due) = self.timers.next(), if !self.timers.is_empty() => {
                    let id = due.into_inner();
                    if let Some(slot) = self.slots.get_mut(&id) {
                        slot.timer = None;
                        self.start(&id);
                    }
                }
                push = world.sources.changed() => self.pushed(&push),
                stale = world.sources.stale() => self.outdated(&stale),
                command = self.inbox.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
            }
            let stale = self.slots.values().filter(|slot| slot.stale_files).count();
            self.metrics.volumes(self.slots.len(), stale);
        }
        for slot in self.slots.into_values() {
            slot.answer(&Err(Error::ShuttingDown));
        }
        self.turns.shutdown().await;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Publish(publish, reply) => self.publish(*publish, reply),
            Command::Forget(id, reply) => {
                self.forget(&id, true);
                reply.send(()).unwrap_or_default();
            }
            Command::Reconcile(ids, reply) => {
                let gone = self.slots.keys().filter(|id| !ids.contains(id)).cloned().collect::<Vec<_>>();
                for id in gone {
                    info!(volume_id = %id, "volume is not in the mount table; forgotten");
                    self.forget(&id, false);
                }
                let held = self.slots.iter().filter(|(_, slot)| slot.holds_directory());
                reply.send(held.map(|(id, _)| id.clone()).collect()).unwrap_or_default();
            }
            Command::Ping(reply) => reply.send(()).unwrap_or_default(),
        }
    }

    fn publish(&mut self, publish: Publish, reply: Reply) {
        let id = publish.id.clone();
        let Some(slot) = self.slots.get_mut(&id) else {
            if publish.directory.is_none() {
                reply.send(Err(Error::NoDirectory)).unwrap_or_default();
                return;
            }
            let unheard = publish.unheard;
            let (mut volume, news) = Volume::new(publish);
            if let Err(error) = volume.take(news, self.world.clock.now()) {
                reply.send(Err(error)).unwrap_or_default();
                return;
            }
            if let Some(why) = unheard {
                if !volume.established {
                    reply.send(Err(Error::request(ON_CHANGE, why))).unwrap_or_default();
                    return;
                }
                // It was told once, and has its files: they go on being refreshed.
                volume.request.on_change = None;
                warn!(volume_id = %id, pod = %volume.workload, why, "the pod is not told any more of changes");
            }
            info!(volume_id = %id, pod = %volume.workload, files = volume.request.files.len(), "volume taken on");
            volume.subscription = self.world.sources.subscribe(&volume.workload);
            self.slots.insert(id.clone(), Slot::new(volume, reply));
            self.start(&id);
            return;
        };
        let news = News::from(publish);
        if slot.volume.is_none() {
            slot.news.push((news, reply));
            return;
        }
        slot.waiting.push(reply);
        self.take_in(&id, news);
    }

    /// Takes `news` into a volume that is in its slot, and answers those who wait or starts a turn for them.
    fn take_in(&mut self, id: &VolumeId, news: News) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let Some(volume) = &mut slot.volume else { return };
        let brings_directory = news.directory.is_some();
        if let Err(error) = volume.take(news, self.world.clock.now()) {
            // The descriptor is of no use; the volume goes on with what it has.
            slot.reply(&Err(error));
            return;
        }
        let Some(volume) = &slot.volume else { return };
        if brings_directory || !volume.established || volume.trouble.is_some() {
            self.start(id);
        } else if volume.directory.is_none() {
            slot.reply(&Err(Error::NoDirectory));
        } else {
            slot.reply(&Ok(()));
        }
    }

    /// Sends a volume into its turn; no effect if it is in one.
    fn start(&mut self, id: &VolumeId) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let Some(mut volume) = slot.volume.take() else { return };
        if let Some(timer) = slot.timer.take() {
            self.timers.remove(&timer);
        }
        let world = Arc::clone(&self.world);
        let handle = self.turns.spawn(async move {
            let turned = unbroken(&mut volume, &world).await;
            (volume, turned)
        });
        slot.turning = Some(handle);
    }

    fn turned(&mut self, task: tokio::task::Id, mut volume: Volume, turned: Turned) {
        let id = volume.id.clone();
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.turning.as_ref().is_none_or(|turning| turning.id() != task) {
            // A forgotten volume's last turn; the slot is that of a volume published anew.
            return;
        }
        slot.turning = None;
        slot.stale_files = turned.trouble.is_some();
        self.metrics.turned(&turned);
        notify(&self.notifier, &volume, &turned);
        note(&mut volume, &turned, &self.events, self.world.clock.wall());
        if turned.result.is_ok() {
            volume.established = true;
            if volume.provisional {
                // Closed before the answer: the driver cannot make the mount read-only under a writer.
                volume.directory = None;
            }
        }
        if !volume.established {
            let Err(error) = turned.result else { return };
            let Some(slot) = self.slots.remove(&id) else { return };
            slot.answer(&Err(error));
            return;
        }
        // Whatever went wrong, the pod has its files: a republish never fails.
        let mut changed = false;
        for push in std::mem::take(&mut slot.pushes) {
            changed |= volume.learn(&push);
        }
        let again = std::mem::take(&mut slot.stale).iter().any(|stale| volume.reads(stale)) || changed;
        slot.volume = Some(volume);
        slot.timer = Some(self.timers.insert_at(id.clone(), turned.due));
        slot.reply(&Ok(()));
        if again {
            self.start(&id);
        }
        let Some(slot) = self.slots.get_mut(&id) else { return };
        for (news, reply) in std::mem::take(&mut slot.news) {
            let Some(slot) = self.slots.get_mut(&id) else { return };
            match &slot.volume {
                Some(_) => {
                    slot.waiting.push(reply);
                    self.take_in(&id, news);
                }
                // A turn for the news before it is running already.
                None => slot.news.push((news, reply)),
            }
        }
    }

    fn forget(&mut self, id: &VolumeId, wipe: bool) {
        self.notifier.forget(id);
        let Some(mut slot) = self.slots.remove(id) else { return };
        if let Some(timer) = &slot.timer {
            self.timers.remove(timer);
        }
        if let Some(turning) = &slot.turning {
            turning.abort();
        }
        if let Some(directory) = slot.volume.as_mut().and_then(|volume| volume.directory.take())
            && wipe
        {
            directory.wipe();
        }
        info!(volume_id = %id, "volume forgotten");
        slot.answer(&Err(Error::Forgotten));
    }
}

/// Tells the pod that its files have changed, if it wants to know.
fn notify(notifier: &Notifier, volume: &Volume, turned: &Turned) {
    let generation = volume.directory.as_ref().and_then(Directory::generation);
    if let (Some(target), Some(generation), false) =
        (&volume.request.on_change, generation, turned.changed.is_empty())
    {
        notifier.tell(Notice {
            volume: volume.id.clone(),
            workload: volume.workload.clone(),
            target: target.clone(),
            generation: generation.to_owned(),
            files: turned.changed.clone(),
        });
    }
}

#[cfg(test)]
mod tests;
