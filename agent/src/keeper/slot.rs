//! The place of one volume at the keeper.

use tokio::task::AbortHandle;
use tokio_util::time::delay_queue;

use super::handle::Reply;
use crate::Error;
use crate::identity::{Push, Workload};
use crate::sources::Stale;
use crate::volume::{News, Volume};

/// A volume's place.
#[derive(Debug)]
pub(super) struct Slot {
    /// Whose the volume is, also while it is in its turn.
    pub(super) workload: Workload,
    /// None while the volume is in its turn.
    pub(super) volume: Option<Volume>,
    pub(super) turning: Option<AbortHandle>,
    /// Whether the last turn met trouble.
    pub(super) stale_files: bool,
    pub(super) timer: Option<delay_queue::Key>,
    /// Who waits for the turn that runs.
    pub(super) waiting: Vec<Reply>,
    /// What came during the turn, and who waits for it to be taken in.
    pub(super) news: Vec<(News, Reply)>,
    /// The changes of the pod's SVIDs that came during the turn, of each the last.
    pub(super) pushes: Vec<Push>,
    /// What stores reported as changed during the turn.
    pub(super) stale: Vec<Stale>,
}

impl Slot {
    /// A place for `volume`, and one who waits for its first turn.
    pub(super) fn new(volume: Volume, reply: Reply) -> Self {
        Self {
            workload: volume.workload.clone(),
            volume: Some(volume),
            turning: None,
            stale_files: false,
            timer: None,
            waiting: vec![reply],
            news: Vec::new(),
            pushes: Vec::new(),
            stale: Vec::new(),
        }
    }

    /// Answers those who wait for the turn that ended.
    pub(super) fn reply(&mut self, result: &Result<(), Error>) {
        for reply in self.waiting.drain(..) {
            // Who does not wait any more does not need the answer.
            reply.send(result.clone()).unwrap_or_default();
        }
    }

    /// Answers everybody: the slot ends.
    pub(super) fn answer(mut self, result: &Result<(), Error>) {
        self.reply(result);
        for (_, reply) in self.news.drain(..) {
            reply.send(result.clone()).unwrap_or_default();
        }
    }

    /// Keeps a change for the end of the turn.
    pub(super) fn hear(&mut self, push: &Push) {
        self.pushes.retain(|heard| heard.workload != push.workload);
        self.pushes.push(push.clone());
    }

    pub(super) fn holds_directory(&self) -> bool {
        self.volume.as_ref().is_none_or(|volume| volume.directory.is_some())
    }
}
