//! What is known of one secret: the last good answer, what went wrong since, and when to ask again.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::Error;
use crate::request::Source;
use crate::secret::Node;
use crate::store::{Fetched, Fresh, Held};

/// First and longest pause after a failed read.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often in a row a store has to say that a secret is gone or denied before it is believed: a file that is being
/// replaced, or a policy that is being edited, is back at the next look.
const CERTAIN: u32 = 2;
/// A store's `Retry-After` is obeyed up to this.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(3600);

/// All that is known of one secret.
#[derive(Debug)]
pub(super) struct State {
    pub(super) good: Option<Good>,
    pub(super) failure: Option<Failure>,
    /// The store's own: what keeps the answer alive there.
    pub(super) held: Option<Held>,
    /// The store said that volumes must not share it.
    pub(super) apart: bool,
    /// Between 0.9 and 1.1, drawn anew at each read: nodes that started together drift apart.
    pub(super) jitter: f64,
}

/// The last good answer.
#[derive(Debug)]
pub(super) struct Good {
    pub(super) document: Arc<Node>,
    pub(super) version: String,
    pub(super) read_at: Instant,
    pub(super) fresh: Fresh,
}

/// What went wrong since.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) attempts: u32,
    /// How many of the last attempts, in a row, met a withdrawal.
    pub(super) withdrawals: u32,
    pub(super) retry_at: Instant,
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

impl State {
    /// Never asked.
    pub(super) const fn new() -> Self {
        Self { good: None, failure: None, held: None, apart: false, jitter: 1.0 }
    }

    /// When the next read is due for somebody who takes answers up to `max_age` old; none: it was never read.
    pub(super) fn due(&self, max_age: Duration) -> Option<Instant> {
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

    pub(super) fn learn(&mut self, read: Result<Fetched, Error>, now: Instant) {
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

    pub(super) fn look(&self, max_age: Duration, now: Instant) -> Look {
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
    pub(super) fn unanswered(source: &Source, now: Instant) -> Self {
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
