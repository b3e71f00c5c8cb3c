//! What the task that publishes knows, and when it has something to do.

use std::sync::Arc;

use tokio::time::Instant;

use crate::kubernetes::ConfigMap;

/// How the object was last seen.
#[derive(Default, Clone)]
pub(super) enum Seen {
    /// It was not.
    #[default]
    Never,
    Missing,
    Is(Arc<ConfigMap>),
}

/// What the task knows.
#[derive(Default)]
pub(super) struct Progress {
    /// The object as it was last seen.
    pub(super) seen: Seen,
    /// It was seen just now, and not a while ago.
    pub(super) fresh: bool,
    pub(super) failures: u32,
    /// The bundle is another trust domain's, and is written again then.
    pub(super) contested: Option<Instant>,
    /// Tried again then.
    pub(super) again: Option<Instant>,
    /// Published, and ready then.
    pub(super) ready: Option<Instant>,
    pub(super) open: bool,
    pub(super) warned: Vec<String>,
}

impl Progress {
    /// When there is something to do without any news. Nothing is tried again with an object that was never seen: it has
    /// to be looked for first, and the look is news.
    pub(super) fn next(&self) -> Option<Instant> {
        // Nothing is written before it is tried again.
        let again = self.again.or(self.contested).filter(|_| !matches!(self.seen, Seen::Never));
        let ready = self.ready.filter(|_| !self.open);
        [again, ready].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_is_waited_for_that_nobody_would_do_then() {
        let (soon, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let mut progress = Progress { again: Some(soon), ..Progress::default() };
        assert_eq!(progress.next(), None, "an API server that has not answered yet");
        progress.seen = Seen::Missing;
        assert_eq!(progress.next(), Some(soon));
        progress.ready = Some(later);
        assert_eq!(progress.next(), Some(soon));
        progress.again = None;
        assert_eq!(progress.next(), Some(later));
        progress.open = true;
        assert_eq!(progress.next(), None);
        progress.contested = Some(soon);
        assert_eq!(progress.next(), Some(soon));
        progress.again = Some(later);
        assert_eq!(progress.next(), Some(later), "a write that failed");
    }
}
