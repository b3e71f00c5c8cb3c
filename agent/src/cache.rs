//! The node cache: one read per identity and secret, however many volumes want it.
//!
//! An entry is keyed by (SPIFFE ID, source), so what one identity may read is never handed to another. Its lock
//! makes it single-flight: who comes second waits for the first and finds the answer fresh. It lives as long as a
//! volume holds it. A failed read keeps the last good answer and is not repeated before its backoff has run out. When
//! the store itself said when to come again, that holds for a pod as well that kubelet tries to start anew meanwhile.

mod answered;
mod state;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::Error;
use crate::clock::Clock;
use crate::request::Source;
use crate::sources::{Ask, Caller, Sources, Stale};
use crate::spiffe::SpiffeId;
use crate::store::{Answer, Held};
use crate::volume::VolumeId;

pub use answered::{Answered, question};
pub use state::Look;
use state::State;
pub(crate) use state::pause;

/// Reads under way at once from one store: a slow one fills its own bulkhead and nobody else's.
const BULKHEAD: usize = 16;
/// How long one read may take, the wait for the bulkhead included.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// The cache of one node.
#[derive(Debug)]
pub struct Cache {
    clock: Clock,
    entries: Mutex<HashMap<Key, Weak<Entry>>>,
    bulkheads: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
    /// Entries without an answer whose store is not to be asked before then, though no volume may hold them.
    resting: Mutex<Vec<(Instant, Arc<Entry>)>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    spiffe_id: SpiffeId,
    source: Source,
    /// The one volume it is for; none: every volume of the identity.
    alone: Option<VolumeId>,
}

/// One secret as one identity sees it. Holding it keeps it in the cache.
#[derive(Debug)]
pub struct Entry {
    key: Key,
    state: tokio::sync::Mutex<State>,
    /// The store said that it has changed since it was read.
    outdated: AtomicBool,
}

impl Entry {
    /// Whether it is what `spiffe_id` sees.
    pub(crate) fn is_of(&self, spiffe_id: &SpiffeId) -> bool {
        self.key.spiffe_id == *spiffe_id
    }

    /// Whether it is the one that `stale` speaks of.
    pub(crate) fn is(&self, stale: &Stale) -> bool {
        self.key.spiffe_id == stale.spiffe_id && self.key.source == stale.source
    }
}

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, entries: Mutex::default(), bulkheads: Mutex::default(), resting: Mutex::default() }
    }

    /// The entry of `source` for `spiffe_id`, shared with everybody who holds it.
    pub fn entry(&self, spiffe_id: &SpiffeId, source: &Source) -> Arc<Entry> {
        self.keyed(Key { spiffe_id: spiffe_id.clone(), source: source.clone(), alone: None })
    }

    fn keyed(&self, key: Key) -> Arc<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(&key).and_then(Weak::upgrade) {
            return entry;
        }
        if entries.len() == entries.capacity() {
            entries.retain(|_, entry| entry.strong_count() > 0);
        }
        let entry = Arc::new(Entry {
            key: key.clone(),
            state: tokio::sync::Mutex::new(State::new()),
            outdated: AtomicBool::new(false),
        });
        entries.insert(key, Arc::downgrade(&entry));
        entry
    }

    /// The store says that a secret has changed: the next look reads it, however fresh it is. False: nobody holds it.
    pub fn outdate(&self, stale: &Stale) -> bool {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = false;
        // One for all volumes, or one for each.
        for entry in entries.values().filter_map(Weak::upgrade).filter(|entry| entry.is(stale)) {
            entry.outdated.store(true, Ordering::Release);
            held = true;
        }
        held
    }

    /// Number of entries that somebody holds.
    pub fn len(&self) -> usize {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.values().filter(|entry| entry.strong_count() > 0).count()
    }

    /// Whether nobody holds an entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For each store, the age of the oldest secret in use. An entry that is being read at this moment is left out.
    pub fn ages(&self) -> HashMap<String, Duration> {
        self.oldest(|_| true)
    }

    /// For each store with a secret that could not be read again, the age of the oldest such secret. An entry
    /// that is being read at this moment is left out.
    pub fn stale(&self) -> HashMap<String, Duration> {
        self.oldest(|state| state.failure.is_some())
    }

    fn oldest(&self, counts: impl Fn(&State) -> bool) -> HashMap<String, Duration> {
        let entries: Vec<_> = {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.values().filter_map(Weak::upgrade).collect()
        };
        let now = self.clock.now();
        let mut oldest = HashMap::new();
        for entry in entries {
            let Ok(state) = entry.state.try_lock() else { continue };
            let Some(good) = state.good.as_ref().filter(|_| counts(&state)) else { continue };
            let age = oldest.entry(entry.key.source.store.to_string()).or_insert(Duration::ZERO);
            *age = (*age).max(now - good.read_at);
        }
        oldest
    }

    /// What `entry` holds, read again as `caller` if it is older than `max_age` (or than the store's own word), and
    /// the entry it is in from now on: one of the `volume`'s own if the store says that volumes must not share it.
    /// The caller's identity must be the one the entry was made for.
    pub async fn look_for<S: Sources>(
        &self,
        volume: &VolumeId,
        sources: &S,
        entry: Arc<Entry>,
        caller: Caller<'_>,
        max_age: Duration,
    ) -> (Arc<Entry>, Look) {
        if let Some(look) = self.look(sources, &entry, caller, max_age).await {
            return (entry, look);
        }
        let own = self.keyed(Key { alone: Some(volume.clone()), ..entry.key.clone() });
        let look = match self.look(sources, &own, caller, max_age).await {
            Some(look) => look,
            None => Look::unanswered(&own.key.source, self.clock.now()),
        };
        (own, look)
    }

    /// What is at hand, of `entry` if there is one, while nobody can be asked because of `error`, an identity's.
    /// `due` is when to come again at the latest.
    pub async fn unasked(&self, entry: Option<&Arc<Entry>>, error: Error, due: Instant) -> Look {
        let known = match entry {
            Some(entry) => entry.state.lock().await.look(Duration::ZERO, due),
            None => State::new().look(Duration::ZERO, due),
        };
        let withdrawn = matches!(error, Error::IdentityWithdrawn { .. });
        Look { trouble: Some(error), withdrawn, due, ..known }
    }

    /// None: it must not be shared.
    async fn look<S: Sources>(
        &self,
        sources: &S,
        entry: &Arc<Entry>,
        caller: Caller<'_>,
        max_age: Duration,
    ) -> Option<Look> {
        debug_assert_eq!(
            entry.key.spiffe_id, caller.identity.spiffe_id,
            "an entry is asked for as its own identity"
        );
        let mut state = entry.state.lock().await;
        let now = self.clock.now();
        // Where the last read failed, its pause is kept to: what changed is read with the next one.
        let outdated = entry.outdated.swap(false, Ordering::AcqRel) && state.failure.is_none();
        if !state.apart && (outdated || state.due(max_age).is_none_or(|due| due <= now)) {
            let ask = Ask { caller, source: &entry.key.source, alone: entry.key.alone.is_some() };
            match self.read(sources, ask, &mut state.held).await {
                Ok(Answer::Apart) => state.apart = true,
                Ok(Answer::Secret(fetched) | Answer::Kept(fetched)) => {
                    state.learn(Ok(fetched), self.clock.now());
                }
                Err(error) => {
                    let asked_to_wait =
                        matches!(&error, Error::StoreUnavailable { retry_after: Some(_), .. });
                    state.learn(Err(error), self.clock.now());
                    if asked_to_wait {
                        self.rest(entry, &state);
                    }
                }
            }
        }
        (!state.apart).then(|| state.look(max_age, self.clock.now()))
    }

    /// Keeps an entry until its store may be asked again. One with an answer is not kept: a secret goes with its pods.
    fn rest(&self, entry: &Arc<Entry>, state: &State) {
        let now = self.clock.now();
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.retain(|(until, kept)| *until > now && !Arc::ptr_eq(kept, entry));
        if let (None, Some(failure)) = (&state.good, &state.failure) {
            resting.push((failure.retry_at, Arc::clone(entry)));
        }
    }

    async fn read<S: Sources>(
        &self,
        sources: &S,
        ask: Ask<'_>,
        held: &mut Option<Held>,
    ) -> Result<Answer, Error> {
        let source = ask.source;
        let bulkhead = self.bulkhead(&source.store);
        let read = async {
            let _place = bulkhead.acquire().await;
            sources.fetch(ask, held).await
        };
        tokio::time::timeout(READ_LIMIT, read).await.unwrap_or_else(|_| {
            Err(Error::StoreUnavailable {
                store: source.store.to_string(),
                problem: format!(
                    "no answer within {} s; is it reachable from this node?",
                    READ_LIMIT.as_secs()
                ),
                retry_after: None,
            })
        })
    }

    fn bulkhead(&self, store: &Arc<str>) -> Arc<Semaphore> {
        let mut bulkheads = self.bulkheads.lock().unwrap_or_else(PoisonError::into_inner);
        let bulkhead =
            bulkheads.entry(Arc::clone(store)).or_insert_with(|| Arc::new(Semaphore::new(BULKHEAD)));
        Arc::clone(bulkhead)
    }
}

#[cfg(test)]
mod tests;
