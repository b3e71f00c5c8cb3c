//! What the driver remembers of the volumes it has mounted. All of it can be lost: the mount table has the rest.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::link::Epoch;
use crate::target::MountId;
use crate::volume::VolumeId;

/// One mounted volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The mount at its target.
    pub mount: MountId,
    /// The connection over which the agent got, or said that it has, a descriptor of the volume.
    pub held: Option<Epoch>,
    /// The connection over which a request was last answered with OK, and the fingerprint of that request.
    pub delivered: Option<(Epoch, u64)>,
}

/// All mounted volumes.
#[derive(Debug, Default)]
pub struct Volumes {
    known: Mutex<HashMap<VolumeId, Known>>,
}

impl Volumes {
    /// Remembers a volume, in place of what was known of it.
    pub fn remember(&self, id: VolumeId, known: Known) {
        self.lock().insert(id, known);
    }

    /// What is known of a volume.
    #[must_use]
    pub fn known(&self, id: VolumeId) -> Option<Known> {
        self.lock().get(&id).copied()
    }

    /// Forgets a volume.
    pub fn forget(&self, id: VolumeId) {
        self.lock().remove(&id);
    }

    /// Notes that the agent at the other end of connection `epoch` holds descriptors of these volumes.
    pub fn held(&self, epoch: Epoch, ids: impl Iterator<Item = VolumeId>) {
        let mut known = self.lock();
        for id in ids {
            if let Some(volume) = known.get_mut(&id) {
                volume.held = Some(epoch);
            }
        }
    }

    /// The ids of all mounted volumes.
    #[must_use]
    pub fn ids(&self) -> Vec<VolumeId> {
        self.lock().keys().copied().collect()
    }

    /// How many volumes are mounted.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
