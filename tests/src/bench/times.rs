//! Statistics of times, by sorting them.

use std::time::Duration;

use anyhow::{Result, ensure};

/// One or more measured times.
#[derive(Debug, Clone)]
pub struct Times {
    sorted: Vec<Duration>,
}

impl Times {
    /// Of samples, of which there must be some.
    pub fn of(mut samples: Vec<Duration>) -> Result<Self> {
        ensure!(!samples.is_empty(), "nothing was measured");
        samples.sort_unstable();
        Ok(Self { sorted: samples })
    }

    /// The nearest-rank percentile: the least sample that so many of a hundred samples do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).or(self.sorted.last()).copied().unwrap_or_default()
    }

    /// The median.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_their_rank() {
        let times = Times::of((1..=200).rev().map(Duration::from_millis).collect()).unwrap();
        assert_eq!(times.median(), Duration::from_millis(100));
        assert_eq!(times.percentile(99), Duration::from_millis(198));
        assert_eq!(times.percentile(100), Duration::from_millis(200));
        let one = Times::of(vec![Duration::from_secs(1)]).unwrap();
        assert_eq!((one.median(), one.percentile(99)), (Duration::from_secs(1), Duration::from_secs(1)));
        assert!(Times::of(Vec::new()).is_err());
    }
}
