//! The API server's own word on when to come again (RFC 9110 §10.2.3): whoever asks through one client keeps to it, in
//! whatever it asks. A crowd of pods that wait would otherwise ask in turns what each was told to ask later.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::kubernetes::error::ApiError;

/// The refusal that named the latest time, and that time.
#[derive(Default)]
pub(super) struct Quiet(Mutex<Option<(ApiError, Instant)>>);

impl Quiet {
    /// The refusal that still holds at `now`, with what is left of the wait that it asked for.
    pub(super) fn holds(&self, now: Instant) -> Option<ApiError> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (refusal, until) = kept.as_ref()?;
        let left = until.saturating_duration_since(now);
        if left.is_zero() {
            *kept = None;
            return None;
        }
        Some(refusal.clone().asking_for(left))
    }

    /// Takes note of a refusal, where it names a time.
    pub(super) fn note(&self, refusal: &ApiError, now: Instant) {
        let Some(wait) = refusal.retry_after() else { return };
        let until = now + wait;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|(_, known)| *known < until) {
            *kept = Some((refusal.clone(), until));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;

    fn refusal(seconds: Option<u64>) -> ApiError {
        ApiError::Refused {
            server: "10.0.0.1:443".to_owned(),
            status: StatusCode::TOO_MANY_REQUESTS,
            message: String::new(),
            retry_after: seconds.map(Duration::from_secs),
        }
    }

    #[test]
    fn the_longest_wait_holds_to_its_end() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        quiet.note(&refusal(None), start);
        assert_eq!(quiet.holds(start), None, "no time was named");
        quiet.note(&refusal(Some(8)), start);
        quiet.note(&refusal(Some(1)), after(2));
        assert_eq!(quiet.holds(after(5)), Some(refusal(Some(3))));
        assert_eq!(quiet.holds(after(8)), None);
        quiet.note(&refusal(Some(0)), after(9));
        assert_eq!(quiet.holds(after(9)), None, "at once is no wait");
    }
}
