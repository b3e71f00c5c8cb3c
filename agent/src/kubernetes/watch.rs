//! One object, followed: listed, watched, and listed again whenever the watch does not go on.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use rand::Rng as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::client::MAX_ANSWER;
use crate::kubernetes::{Api, ApiError, Meta, ObjectName};

/// How long the API server keeps one watch open, in seconds: a connection that died without a word is replaced
/// after that at the latest.
const WATCH_SECONDS: u64 = 300;
/// The pause after a watch that ended well, so that a server that ends each at once is not stormed.
const REST: Duration = Duration::from_secs(1);
/// The longest pause after failures in a row.
const LONGEST: Duration = Duration::from_secs(30);

/// What was seen of the object.
#[derive(Debug)]
pub(crate) enum Look<T> {
    /// It is there, like this.
    Is(T),
    /// It is not there.
    Missing,
    /// The API server can't be asked; what was seen before is all that is known.
    Failed(ApiError),
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default)]
    metadata: Meta,
    items: Vec<T>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

/// Calls `saw` with every state of `object` until `shutdown`. Failures are told too, each time, and tried again.
pub(crate) async fn follow<T: DeserializeOwned>(
    api: &Api,
    object: &ObjectName,
    shutdown: &CancellationToken,
    mut saw: impl FnMut(Look<T>),
) {
    let mut failures: u32 = 0;
    let following = async {
        loop {
            let pause = match round(api, object, &mut saw, &mut failures).await {
                Ok(()) => REST,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    let pause = pause(&error, failures);
                    saw(Look::Failed(error));
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = following => {}
    }
}

/// How long to wait after the `failures`th failure in a row.
fn pause(error: &ApiError, failures: u32) -> Duration {
    let doubled = REST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST);
    let pause = doubled.mul_f64(rand::rng().random_range(0.9..=1.1));
    // Never sooner than was asked for, and not everybody at that very moment.
    let wanted = |wanted: Duration| wanted.mul_f64(rand::rng().random_range(1.0..=1.1));
    error.retry_after().map_or(pause, |asked| wanted(asked).max(pause))
}

/// One list and the watch from there to its end.
async fn round<T: DeserializeOwned>(
    api: &Api,
    object: &ObjectName,
    saw: &mut impl FnMut(Look<T>),
    failures: &mut u32,
) -> Result<(), ApiError> {
    let alone = object.alone();
    let list: List<T> = api.get(&alone).await?;
    *failures = 0;
    match list.items.into_iter().next() {
        Some(item) => saw(Look::Is(item)),
        None => saw(Look::Missing),
    }
    let version = list.metadata.resource_version;
    let path = format!(
        "{alone}&watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={version}"
    );
    let mut lines = Lines::new(api.stream(&path).await?);
    // A little longer than the API server itself waits.
    let limit = Duration::from_secs(WATCH_SECONDS + 30);
    let watching = async {
        while let Some(line) = lines.next(api).await? {
            let unreadable = |_| api.unreadable("its watch sent something that can't be read");
            let event: Event = serde_json::from_slice(&line).map_err(unreadable)?;
            match event.kind.as_str() {
                "ADDED" | "MODIFIED" => {
                    saw(Look::Is(serde_json::from_value(event.object).map_err(unreadable)?));
                }
                "DELETED" => saw(Look::Missing),
                // ERROR: most likely the version is too old to go on from; the next list has a new one.
                // Anything new: the next list shows what it was about.
                "BOOKMARK" => {}
                _ => return Ok(()),
            }
        }
        Ok(())
    };
    tokio::time::timeout(limit, watching).await.unwrap_or(Ok(()))
}

/// The lines of a body.
struct Lines {
    body: Incoming,
    read: Vec<u8>,
}

impl Lines {
    fn new(body: Incoming) -> Self {
        Self { body, read: Vec::new() }
    }

    /// The next whole line, without its end; nothing when the stream has ended.
    async fn next(&mut self, api: &Api) -> Result<Option<Bytes>, ApiError> {
        loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(at + 1);
                let mut line = std::mem::replace(&mut self.read, rest);
                line.pop();
                return Ok(Some(Bytes::from(line)));
            }
            match self.body.frame().await {
                // A watch that breaks off is one that ended: what comes next is a list.
                None | Some(Err(_)) => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
            }
            if self.read.len() > MAX_ANSWER {
                return Err(api.unreadable("its watch sent a line that is too long"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn a_pause_grows_and_is_never_shorter_than_was_asked_for() {
        let refused = |seconds: Option<u64>| ApiError::Refused {
            server: String::new(),
            status: StatusCode::TOO_MANY_REQUESTS,
            message: String::new(),
            retry_after: seconds.map(Duration::from_secs),
        };
        let seconds = |range: std::ops::RangeInclusive<f64>, pause: Duration| {
            assert!(range.contains(&pause.as_secs_f64()), "{pause:?}");
        };
        for _ in 0..100 {
            seconds(0.9..=1.1, pause(&refused(None), 1));
            seconds(27.0..=33.0, pause(&refused(None), 99));
            seconds(60.0..=66.0, pause(&refused(Some(60)), 1));
            seconds(27.0..=33.0, pause(&refused(Some(2)), 99));
        }
    }
}
