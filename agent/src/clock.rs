//! Time as an argument: one clock, whose wall time follows tokio's, so that a paused runtime pauses both.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Pins one moment of the monotonic clock to one of the wall clock.
///
/// Wall time is read again at each call unless the clock was pinned for a test, so a stepped system clock is
/// seen; a pinned clock moves with `tokio::time::advance`.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Wall);

#[derive(Debug, Clone, Copy)]
enum Wall {
    System,
    Pinned { instant: Instant, wall: SystemTime },
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Wall::System)
    }

    /// A clock that shows `wall` now and moves with tokio's (pausable) time. For tests.
    #[must_use]
    pub fn pinned(wall: SystemTime) -> Self {
        Self(Wall::Pinned { instant: Instant::now(), wall })
    }

    /// The monotonic time.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// The time of day.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place where wall time is read")]
    pub fn wall(&self) -> SystemTime {
        match self.0 {
            Wall::System => SystemTime::now(),
            Wall::Pinned { instant, wall } => wall + instant.elapsed(),
        }
    }

    /// Seconds since 1970 (the `NumericDate` of RFC 7519 §2).
    #[must_use]
    pub fn unix(&self) -> i64 {
        let since = self.wall().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }

    /// The monotonic moment at which the wall clock will show `wall`; now, if that has passed.
    #[must_use]
    pub fn instant_of(&self, wall: SystemTime) -> Instant {
        self.now() + wall.duration_since(self.wall()).unwrap_or(Duration::ZERO)
    }
}
