//! The node cache: one read per identity and secret, however many volumes want it.
//!
//! An entry is keyed by (SPIFFE ID, source), so what one identity may read is never handed to another. Its lock
//! makes it single-flight: who comes second waits for the first and finds the answer fresh. It lives as long as a
//! volume holds it. A failed read keeps the last good answer and is not repeated before its backoff has run out. When
//! the store itself said when to come again, that holds for a pod as well that kubelet tries to start anew meanwhile.

mod answered;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rand::Rng;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::Error;
use crate::clock::Clock;
use crate::request::Source;
use crate::secret::Node;
use crate::sources::{Ask, Caller, Sources};
use crate::spiffe::SpiffeId;
use crate::store::{Answer, Fetched, Fresh, Held};
use crate::volume::VolumeId;

pub use answered::{Answered, question};

/// Reads under way at once from one store: a slow one fills its own bulkhead and nobody else's.
const BULKHEAD: usize = 16;
/// How long one read may take, the wait for the bulkhead included.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// First and longest pause after a failed read.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often in a row a store has to say that a secret is gone or denied before it is believed: a file that is being
/// replaced, or a policy that is being edited, is back at the next look.
const CERTAIN: u32 = 2;
/// A store's `Retry-After` is obeyed up to this.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(3600);

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
}

#[derive(Debug)]
struct State {
    good: Option<Good>,
    failure: Option<Failure>,
    /// The store's own: what keeps the answer alive there.
    held: Option<Held>,
    /// The store said that volumes must not share it.
    apart: bool,
    /// Between 0.9 and 1.1, drawn anew at each read: nodes that started together drift apart.
    jitter: f64,
}

#[derive(Debug)]
struct Good {
    document: Arc<Node>,
    version: String,
    read_at: Instant,
    fresh: Fresh,
}

#[derive(Debug)]
struct Failure {
    error: Error,
    attempts: u32,
    /// How many of the last attempts, in a row, met a withdrawal.
    withdrawals: u32,
    retry_at: Instant,
}

/// What the cache knows of a secret after having been asked.
#[derive(Debug)]
pub struct Look {
    /// The last good answer, if there ever was one.
    pub document: Option<Arc<Node>>,
    /// The store's word for this state of it.
    pub version: String,
    /// Why it is not fresh, when it is not.
    pub trouble: Option<Error>,
    /// The trouble is that the secret is gone or denied, and the store has said so more than once.
    pub withdrawn: bool,
    /// When the last good answer was read.
    pub read_at: Option<Instant>,
    /// When to ask again.
    pub due: Instant,
    /// What keeps the document's secret alive at its store. Whoever uses the document holds it for as long.
    pub held: Option<Held>,
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
        let state = State { good: None, failure: None, held: None, apart: false, jitter: 1.0 };
        let entry = Arc::new(Entry { key: key.clone(), state: tokio::sync::Mutex::new(state) });
        entries.insert(key, Arc::downgrade(&entry));
        entry
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
        if !state.apart && state.due(max_age).is_none_or(|due| due <= now) {
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

impl State {
    /// When the next read is due for somebody who takes answers up to `max_age` old; none: it was never read.
    fn due(&self, max_age: Duration) -> Option<Instant> {
        if let Some(failure) = &self.failure {
            return Some(failure.retry_at);
        }
        let good = self.good.as_ref()?;
        let asked = max_age.mul_f64(self.jitter);
        Some(match good.fresh {
            Fresh::AsAsked => good.read_at + asked,
            Fresh::AtMost(limit) => good.read_at + asked.min(limit),
            Fresh::Exactly(span) => good.read_at + span,
        })
    }

    fn learn(&mut self, read: Result<Fetched, Error>, now: Instant) {
        self.jitter = rand::rng().random_range(0.9..=1.1);
        match read {
            Ok(fetched) => {
                let same = self.good.take().filter(|good| good.version == fetched.version);
                self.good = Some(Good {
                    // The document that volumes hold already, if nothing changed: one copy in memory, not two.
                    document: same.map_or(fetched.document, |good| good.document),
                    version: fetched.version,
                    read_at: now,
                    fresh: fetched.fresh,
                });
                self.failure = None;
            }
            Err(error) => {
                let attempts = self.failure.as_ref().map_or(0, |failure| failure.attempts) + 1;
                let before = self.failure.as_ref().map_or(0, |failure| failure.withdrawals);
                let withdrawals = if error.is_withdrawal() { before.saturating_add(1) } else { 0 };
                let pause = pause(&error, attempts).mul_f64(self.jitter);
                self.failure = Some(Failure { error, attempts, withdrawals, retry_at: now + pause });
            }
        }
    }

    fn look(&self, max_age: Duration, now: Instant) -> Look {
        Look {
            document: self.good.as_ref().map(|good| Arc::clone(&good.document)),
            version: self.good.as_ref().map(|good| good.version.clone()).unwrap_or_default(),
            trouble: self.failure.as_ref().map(|failure| failure.error.clone()),
            withdrawn: self.failure.as_ref().is_some_and(|failure| failure.withdrawals >= CERTAIN),
            read_at: self.good.as_ref().map(|good| good.read_at),
            due: self.due(max_age).unwrap_or(now),
            held: self.held.clone(),
        }
    }
}

impl Look {
    /// A store that will not share a secret and will not give it to one volume either.
    fn unanswered(source: &Source, now: Instant) -> Self {
        Self {
            document: None,
            version: String::new(),
            trouble: Some(Error::Unusable {
                store: source.store.to_string(),
                problem: "BUG: it does not answer a volume on its own".to_owned(),
            }),
            withdrawn: false,
            read_at: None,
            due: now + BACKOFF.1,
            held: None,
        }
    }
}

/// How long to leave a store alone after the `attempts`-th failure in a row.
pub(crate) fn pause(error: &Error, attempts: u32) -> Duration {
    let (first, longest) = BACKOFF;
    let doubled = first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(longest);
    if let Error::StoreUnavailable { retry_after: Some(asked), .. } = error {
        return doubled.max(*asked).min(RETRY_AFTER_LIMIT);
    }
    doubled
}

#[cfg(test)]
mod tests;
