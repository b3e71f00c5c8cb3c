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
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::identity::key::sha256;
use crate::issuer::health::Health;
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
/// How often a reviewer that failed is tried: at first, and at last.
const PROBE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
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
    health: Arc<Health>,
    entries: Mutex<HashMap<[u8; 32], Entry>>,
}

impl Reviews {
    pub(crate) fn new(reviewer: Reviewer, clock: Clock, metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        Self { reviewer, clock, metrics, health, entries: Mutex::default() }
    }

    /// Until `shutdown`: while tokens can't be reviewed, asks now and then whether they can again. Nobody else would
    /// find out, for an issuer that is not ready is asked nothing.
    pub(crate) async fn watch_over(&self, shutdown: &CancellationToken) {
        let mut pause = PROBE.0;
        loop {
            if self.health.reviews() {
                pause = PROBE.0;
            } else {
                self.heard(self.reviewer.probe().await.err().as_ref());
            }
            let wait = if self.health.reviews() { PROBE.1 } else { pause };
            pause = (pause * 2).min(PROBE.1);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Takes note of whether a review could be made; that a token is bad is a review too.
    fn heard(&self, fault: Option<&TokenFault>) {
        let condition = match fault {
            Some(TokenFault::Unreviewed(problem)) => Err(problem.clone()),
            Some(_) | None => Ok(()),
        };
        let good = condition.is_ok();
        let problem = condition.clone().err().unwrap_or_default();
        if self.health.reviewed(condition) {
            if good {
                tracing::info!("tokens can be reviewed");
            } else {
                tracing::warn!(%problem, "tokens can't be reviewed");
            }
        }
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
                self.heard(result.as_ref().err());
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
        let reviews = Reviews::new(
            Reviewer::Scripted(scripted),
            clock,
            Arc::new(Metrics::new()),
            Arc::new(Health::new(false, true)),
        );
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

    #[tokio::test(start_paused = true)]
    async fn a_reviewer_that_fails_is_probed_until_it_answers() {
        let working = Arc::new(AtomicUsize::new(0));
        let works = Arc::clone(&working);
        let (reviews, calls) = reviews(move |_| match works.load(Ordering::SeqCst) {
            0 => Err(TokenFault::Unreviewed("down".to_owned())),
            _ => Err(TokenFault::Rejected("no such token".to_owned())),
        });
        let shutdown = CancellationToken::new();
        let script = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert!(!reviews.health.reviews());
            let tried = calls.load(Ordering::SeqCst);
            assert!((7..=10).contains(&tried), "{tried}");
            working.store(1, Ordering::SeqCst);
            tokio::time::sleep(PROBE.1).await;
            assert!(reviews.health.reviews());
            let tried = calls.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(calls.load(Ordering::SeqCst), tried, "what works is left alone");
            working.store(0, Ordering::SeqCst);
            reviews.review(Whose::Agent, &token("t")).await.unwrap_err();
            assert!(!reviews.health.reviews(), "a real review tells too");
            shutdown.cancel();
        };
        tokio::join!(reviews.watch_over(&shutdown), script);
    }

    #[tokio::test]
    async fn no_token_is_no_question() {
        let (reviews, calls) = reviews(|_| Ok(facts(None)));
        let refusal = reviews.review(Whose::Agent, &token("")).await.unwrap_err();
        assert_eq!(refusal.to_string(), "the agent's token is missing");
        assert_eq!(calls.load(Ordering::SeqCst), 0);
    }
}
