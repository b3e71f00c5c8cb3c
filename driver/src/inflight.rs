//! At most one operation a volume.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::volume::VolumeId;

/// What is being done to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It is being published or republished: the agent is to have it.
    Publish,
    /// It is being taken away, or the agent is being told that it is gone.
    Remove,
}

/// The volumes that an operation is running on.
#[derive(Debug, Default)]
pub struct Inflight {
    running: Mutex<HashMap<VolumeId, Work>>,
}

impl Inflight {
    /// Begins an operation; it ends when the guard is dropped.
    ///
    /// # Errors
    /// [`Error::Busy`] while another one is running on the same volume.
    pub fn start(self: &Arc<Self>, id: VolumeId, work: Work) -> Result<Guard, Error> {
        let mut running = self.lock();
        if running.contains_key(&id) {
            return Err(Error::Busy);
        }
        running.insert(id, work);
        Ok(Guard { id, of: Arc::clone(self) })
    }

    /// The volumes that are being published right now.
    #[must_use]
    pub fn publishing(&self) -> Vec<VolumeId> {
        self.lock().iter().filter(|(_, work)| **work == Work::Publish).map(|(id, _)| *id).collect()
    }

    /// Whether the volume is being published right now.
    #[must_use]
    pub fn is_publishing(&self, id: VolumeId) -> bool {
        self.lock().get(&id) == Some(&Work::Publish)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Work>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation that is running. Dropping it ends the operation.
#[derive(Debug)]
pub struct Guard {
    id: VolumeId,
    of: Arc<Inflight>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.of.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Place;

    fn id(name: &str) -> VolumeId {
        VolumeId::of(&Place::parse("", &format!("/pods/u/volumes/kubernetes.io~csi/{name}/mount")).unwrap())
    }

    #[test]
    fn a_second_operation_is_refused_until_the_first_has_ended() {
        let inflight = Arc::new(Inflight::default());
        let first = inflight.start(id("a"), Work::Publish).unwrap();
        assert!(matches!(inflight.start(id("a"), Work::Publish), Err(Error::Busy)));
        assert!(matches!(inflight.start(id("a"), Work::Remove), Err(Error::Busy)));
        let other = inflight.start(id("b"), Work::Remove).unwrap();
        assert_eq!(inflight.publishing(), [id("a")]);
        drop(first);
        assert!(inflight.start(id("a"), Work::Remove).is_ok());
        assert_eq!(inflight.publishing(), []);
        drop(other);
    }

    #[test]
    fn a_panic_ends_the_operation() {
        let inflight = Arc::new(Inflight::default());
        let held = Arc::clone(&inflight);
        let ended = std::thread::spawn(move || {
            let _guard = held.start(id("a"), Work::Publish).unwrap();
            panic!("in the middle of it");
        });
        assert!(ended.join().is_err());
        assert!(inflight.start(id("a"), Work::Publish).is_ok());
    }
}
