//! What sources tell of by themselves, and whose turn is due for it.

use tokio::sync::watch;

use super::Keeper;
use super::slot::Slot;
use crate::identity::{Push, Roots};
use crate::sources::{Sources, Stale};
use crate::volume::VolumeId;

impl<S: Sources> Keeper<S> {
    /// Files that hold the roots follow them; a turn that finds nothing else new asks nobody.
    pub(super) fn other_roots(&mut self) {
        let ids: Vec<_> = self.slots.keys().cloned().collect();
        for id in &ids {
            self.start(id);
        }
    }

    /// A pod has another identity: its volumes' turns are due at once.
    pub(super) fn pushed(&mut self, push: &Push) {
        let theirs = |(_, slot): &(&VolumeId, &Slot)| slot.workload.is_pod_of(&push.workload);
        let ids = self.slots.iter().filter(theirs).map(|(id, _)| id.clone()).collect::<Vec<_>>();
        for id in ids {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            let Some(volume) = &mut slot.volume else {
                slot.hear(push);
                continue;
            };
            if volume.learn(push) {
                self.start(&id);
            }
        }
    }

    /// A secret has changed at its store: the turns of the volumes that read it are due at once.
    pub(super) fn outdated(&mut self, stale: &Stale) {
        if !self.world.cache.outdate(stale) {
            return;
        }
        let mut due = Vec::new();
        for (id, slot) in &mut self.slots {
            match &slot.volume {
                Some(volume) if volume.reads(stale) => due.push(id.clone()),
                // It may have read before the change.
                None if !slot.stale.contains(stale) => slot.stale.push(stale.clone()),
                Some(_) | None => {}
            }
        }
        for id in due {
            self.start(&id);
        }
    }
}

/// Waits for other roots; for ever where they do not change by themselves.
pub(super) async fn replaced(roots: &mut Option<watch::Receiver<Roots>>) {
    let alive = match roots {
        Some(roots) => roots.changed().await.is_ok(),
        None => std::future::pending().await,
    };
    if !alive {
        *roots = None;
    }
}
