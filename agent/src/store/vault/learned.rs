//! What experience showed of paths, against what their mount suggested.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::config::Namespace;
use super::wanted::Path;

/// Most paths that are remembered. Pods name them, so there may be any number; to have forgotten one costs one login.
const MOST: usize = 1024;

/// Paths whose answers turned out to have a lease, or to have none.
#[derive(Debug, Default)]
pub(super) struct Learned(Mutex<HashMap<(Namespace, Path), (bool, Instant)>>);

impl Learned {
    /// Whether the path's answers have a lease, if that was learnt.
    pub(super) fn of(&self, namespace: &Namespace, path: &Path) -> Option<bool> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(namespace.clone(), path.clone())).map(|(leased, _)| *leased)
    }

    /// Remembers it, and forgets what was learnt longest ago if there is no room.
    pub(super) fn learn(&self, namespace: &Namespace, path: &Path, leased: bool, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.clone(), path.clone());
        if known.len() >= MOST && !known.contains_key(&key) {
            let oldest = known.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| known.remove(&oldest));
        }
        known.insert(key, (leased, now));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn room_is_bounded_and_the_oldest_goes_first() {
        let (learned, root, began) = (Learned::default(), Namespace::default(), Instant::now());
        let path = |number: u64| Path::of(format!("a/{number}"));
        for number in 0..=MOST as u64 {
            learned.learn(&root, &path(number), true, began + Duration::from_secs(number));
        }
        assert_eq!((learned.of(&root, &path(0)), learned.of(&root, &path(1))), (None, Some(true)));
        learned.learn(&root, &path(1), false, began);
        assert_eq!(learned.of(&root, &path(1)), Some(false), "what is known already takes no room");
        assert_eq!(learned.of(&root, &path(2)), Some(true));
        assert_eq!(learned.0.lock().unwrap().len(), MOST);
    }
}
