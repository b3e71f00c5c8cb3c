//! Pauses that grow, and that are never the same for two who failed at once.

use std::time::Duration;

use rand::Rng as _;

/// From a first pause, doubled at each failure, to a longest one; each drawn from the upper half of its range.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new((first, longest): (Duration, Duration)) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_the_first_to_the_longest_and_back() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new((first, longest));
        for most in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.next();
            let most = Duration::from_millis(most);
            assert!(pause <= most && pause >= most / 2, "{pause:?} of {most:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= first);
    }
}
