//! Reviews remembered for seconds, so that 250 publishes at once are not 500 questions to the API server.
//!
//! Keyed by the SHA-256 of the token. Callers that come while a review is under way wait for it. A review is
//! believed for ten seconds when the token is the agent's own and for five when it is a workload's: that is how
//! long a deleted pod's token may go on here. A failure is remembered for one second, so that a crowd at a server
//! that is down asks it once. Nothing is remembered past the token's own end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::identity::key::sha256;
use crate::issuer::metrics::Metrics;
use crate::issuer::refusal::{Refusal, TokenFault, Whose};
use crate::issuer::review::{Reviewed, Reviewer};
use crate::secret::Secret;

/// How long an agent's own token stays reviewed.
const AGENT: Duration = Duration::from_secs(10);
/// How long a workload's does: one `Sign` and the `MintJwt`s after it.
const WORKLOAD: Duration = Duration::from_secs(5);
/// How long a failure lasts.
const FAILURE: Duration = Duration::from_secs(1);
/// More than an agent's worth of every node asking at once; some 500 bytes each.
const MAX_ENTRIES: usize = 4096;

struct Outcome {
    at: Instant,
    /// The moment the token ends; a good outcome is no good past it.
    ends: Option<Instant>,
    result: Result<Reviewed, TokenFault>,
}

impl Outcome {
    fn good_until(&self, whose: Whose) -> Instant {
        let life = match (&self.result, whose) {
            (Err(_), _) => FAILURE,
            (Ok(_), Whose::Agent) => AGENT,
            (Ok(_), Whose::Workload) => WORKLOAD,
        };
        let until = self.at + life;
        self.ends.map_or(until, |ends| until.min(ends))
    }
}

type Entry = Arc<OnceCell<Outcome>>;

/// A reviewer with a short memory.
pub(crate) struct Reviews {
    reviewer: Reviewer,
    clock: Clock,
    metrics: Arc<Metrics>,
    entries: Mutex<HashMap<[u8; 32], Entry>>,
}

impl Reviews {
    pub(crate) fn new(reviewer: Reviewer, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self { reviewer, clock, metrics, entries: Mutex::default() }
    }

    /// The facts of a token, fresh or remembered.
    pub(crate) async fn review(&self, whose: Whose, token: &Secret) -> Result<Reviewed, Refusal> {
        if token.is_empty() {
            return Err(Refusal::Token { whose, fault: TokenFault::Missing });
        }
        let entry = self.entry(whose, sha256(token.expose()));
        let outcome = entry
            .get_or_init(|| async {
                let result = self.reviewer.review(token).await;
                self.metrics.reviewed(result.is_ok());
                let ends = result.as_ref().ok().and_then(|facts| facts.expires);
                Outcome {
                    at: self.clock.now(),
                    ends: ends.map(|ends| self.clock.instant_of(crate::identity::svid::moment(ends))),
                    result,
                }
            })
            .await;
        outcome.result.clone().map_err(|fault| Refusal::Token { whose, fault })
    }

    /// The entry of a token: one that is still good or under way, or a new one.
    fn entry(&self, whose: Whose, key: [u8; 32]) -> Entry {
        let now = self.clock.now();
        let good = |entry: &Entry, whose| entry.get().is_none_or(|outcome| now < outcome.good_until(whose));
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(&key)
            && good(entry, whose)
        {
            return Arc::clone(entry);
        }
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, entry| good(entry, Whose::Agent));
            if entries.len() >= MAX_ENTRIES {
                // Forgetting costs a question; growing without end would cost more.
                entries.clear();
            }
        }
        let entry = Entry::default();
        entries.insert(key, Arc::clone(&entry));
        entry
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::issuer::review::tests::Scripted;

    fn facts(expires: Option<i64>) -> Reviewed {
        Reviewed {
            namespace: "pay".to_owned(),
            service_account: "api".to_owned(),
            pod_name: "api-0".to_owned(),
            pod_uid: "uid".to_owned(),
            node_name: "node-1".to_owned(),
            expires,
        }
    }

    fn reviews(
        answer: impl Fn(&Secret) -> Result<Reviewed, TokenFault> + Send + Sync + 'static,
    ) -> (Arc<Reviews>, Arc<AtomicUsize>) {
        let calls = Arc::new(AtomicUsize::new(0));
        let scripted = Scripted { calls: Arc::clone(&calls), answer: Arc::new(Mutex::new(Box::new(answer))) };
        let clock = crate::issuer::tests::cluster::clock();
        let reviews = Reviews::new(Reviewer::Scripted(scripted), clock, Arc::new(Metrics::new()));
        (Arc::new(reviews), calls)
    }

    fn token(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_asks_once_and_the_answer_lasts_seconds() {
        let (reviews, calls) = reviews(|_| Ok(facts(None)));
        let crowd = (0..250).map(|_| {
            let reviews = Arc::clone(&reviews);
            async move { reviews.review(Whose::Agent, &token("t")).await.unwrap() }
        });
        futures_util::future::join_all(crowd).await;
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        tokio::time::advance(Duration::from_millis(9_999)).await;
        reviews.review(Whose::Agent, &token("t")).await.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        reviews.review(Whose::Agent, &token("t")).await.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        tokio::time::advance(WORKLOAD).await;
        reviews.review(Whose::Workload, &token("t")).await.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 3);
        reviews.review(Whose::Workload, &token("another")).await.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_believed_past_the_tokens_end() {
        let (reviews, calls) = reviews(|_| Ok(facts(Some(crate::issuer::tests::cluster::NOW + 3))));
        reviews.review(Whose::Agent, &token("t")).await.unwrap();
        tokio::time::advance(Duration::from_secs(3)).await;
        reviews.review(Whose::Agent, &token("t")).await.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_lasts_a_second() {
        let (reviews, calls) = reviews(|_| Err(TokenFault::Unreviewed("down".to_owned())));
        for _ in 0..3 {
            let refusal = reviews.review(Whose::Workload, &token("t")).await.unwrap_err();
            assert_eq!(refusal.to_string(), "the workload's token can't be reviewed: down");
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        tokio::time::advance(FAILURE).await;
        reviews.review(Whose::Workload, &token("t")).await.unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_is_bounded() {
        let (reviews, _) = reviews(|_| Ok(facts(None)));
        for number in 0..=MAX_ENTRIES {
            reviews.review(Whose::Workload, &token(&number.to_string())).await.unwrap();
        }
        assert!(reviews.entries.lock().unwrap().len() <= MAX_ENTRIES);
    }

    #[tokio::test]
    async fn no_token_is_no_question() {
        let (reviews, calls) = reviews(|_| Ok(facts(None)));
        let refusal = reviews.review(Whose::Agent, &token("")).await.unwrap_err();
        assert_eq!(refusal.to_string(), "the agent's token is missing");
        assert_eq!(calls.load(Ordering::SeqCst), 0);
    }
}
