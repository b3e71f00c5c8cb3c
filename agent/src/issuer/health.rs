//! What has to be so before agents may come: said by those who know, read by `/readyz`.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One condition: good, or why not.
type Condition = Result<(), String>;

/// The conditions of an issuer that is ready.
#[derive(Debug)]
pub(crate) struct Health(Mutex<Conditions>);

#[derive(Debug)]
struct Conditions {
    published: Condition,
    reviewer: Condition,
}

impl Health {
    /// `publishes`: not ready before [`Self::published`] says so. `asks`: nor before [`Self::reviewed`] does.
    pub(crate) fn new(publishes: bool, asks: bool) -> Self {
        let not = |not_yet: bool, problem: &str| if not_yet { Err(problem.to_owned()) } else { Ok(()) };
        Self(Mutex::new(Conditions {
            published: not(publishes, "not published yet"),
            reviewer: not(asks, "not asked yet"),
        }))
    }

    /// Says whether the keys are published; answers whether that is news.
    pub(crate) fn published(&self, condition: Condition) -> bool {
        let mut conditions = self.conditions();
        let news = conditions.published != condition;
        conditions.published = condition;
        news
    }

    /// Says whether tokens can be reviewed; answers whether that is news.
    pub(crate) fn reviewed(&self, condition: Condition) -> bool {
        let mut conditions = self.conditions();
        let news = conditions.reviewer != condition;
        conditions.reviewer = condition;
        news
    }

    /// Whether tokens could be reviewed when that was last tried.
    pub(crate) fn reviews(&self) -> bool {
        self.conditions().reviewer.is_ok()
    }

    /// Ready or not, and a line for each condition.
    pub(crate) fn report(&self, root: &Condition) -> (bool, String) {
        let conditions = self.conditions();
        let lines =
            [("root", root), ("publication", &conditions.published), ("reviewer", &conditions.reviewer)];
        let mut text = String::new();
        for (name, condition) in lines {
            let line = match condition {
                Ok(()) => writeln!(text, "[+] {name}"),
                Err(problem) => writeln!(text, "[-] {name}: {problem}"),
            };
            // Writing into a string does not fail.
            line.unwrap_or_default();
        }
        (lines.iter().all(|(_, condition)| condition.is_ok()), text)
    }

    fn conditions(&self) -> MutexGuard<'_, Conditions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_nothing_is_missing() {
        let health = Health::new(true, true);
        let (ready, text) = health.report(&Ok(()));
        assert!(!ready);
        assert_eq!(text, "[+] root\n[-] publication: not published yet\n[-] reviewer: not asked yet\n");
        assert!(health.published(Ok(())));
        assert!(!health.published(Ok(())), "no news");
        health.reviewed(Ok(()));
        assert_eq!(health.report(&Ok(())), (true, "[+] root\n[+] publication\n[+] reviewer\n".to_owned()));
        assert!(!health.report(&Err("ended".to_owned())).0);
        assert!(Health::new(false, false).report(&Ok(())).0);
    }
}
