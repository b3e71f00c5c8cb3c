//! The place of one volume at the keeper.

use tokio::task::AbortHandle;
use tokio_util::time::delay_queue;

use super::handle::Reply;
use crate::Error;
use crate::volume::{News, Volume};

/// A volume's place.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// None while the volume is in its turn.
    pub(super) volume: Option<Volume>,
    pub(super) turning: Option<AbortHandle>,
    pub(super) timer: Option<delay_queue::Key>,
    /// Who waits for the turn that runs.
    pub(super) waiting: Vec<Reply>,
    /// What came during the turn, and who waits for it to be taken in.
    pub(super) news: Vec<(News, Reply)>,
}

impl Slot {
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

    pub(super) fn holds_directory(&self) -> bool {
        self.volume.as_ref().is_none_or(|volume| volume.directory.is_some())
    }
}
