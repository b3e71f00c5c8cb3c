//! Why the API server gave no answer, or not the one that was hoped for.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

use crate::identity::reread::RereadError;

/// Longest piece of an API server's message that is handed on, in characters.
const MAX_MESSAGE: usize = 200;

/// A call to the API server that failed. No variant holds a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    /// Our own token, or the file of its certificate authority.
    #[error("{0}")]
    Own(RereadError),
    /// No connection, or one that broke.
    #[error("API server {server}: {problem}")]
    Unreachable {
        /// `HOST:PORT`.
        server: String,
        /// The innermost cause.
        problem: String,
    },
    /// No answer in time.
    #[error("API server {server}: no answer within {} s", limit.as_secs())]
    Slow {
        /// `HOST:PORT`.
        server: String,
        /// How long was waited.
        limit: Duration,
    },
    /// An answer that is a refusal. A redirect is one too: a token is not sent where a stranger points.
    #[error("API server {server}: it answered {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Refused {
        /// `HOST:PORT`.
        server: String,
        /// The HTTP status.
        status: StatusCode,
        /// The API server's own words: short, printable, without our tokens.
        message: String,
        /// Its own word on when to come again (RFC 9110 §10.2.3, in seconds).
        retry_after: Option<Duration>,
    },
    /// An answer that can't be read.
    #[error("API server {server}: {problem}")]
    Unreadable {
        /// `HOST:PORT`.
        server: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// What the API server says when it refuses a request (`Status` of `meta/v1`).
#[derive(Deserialize)]
struct ApiStatus {
    #[serde(default)]
    message: String,
}

impl ApiError {
    /// The HTTP status, if there was an answer.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        if let Self::Refused { status, .. } = self { Some(*status) } else { None }
    }

    /// Whether the object is not there.
    pub(crate) fn is_missing(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND)
    }

    /// Whether somebody else was faster.
    pub(crate) fn is_conflict(&self) -> bool {
        self.status() == Some(StatusCode::CONFLICT)
    }

    /// Whether a right is missing.
    pub(crate) fn is_forbidden(&self) -> bool {
        self.status() == Some(StatusCode::FORBIDDEN)
    }

    /// When the API server wants to be asked again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        if let Self::Refused { retry_after, .. } = self { *retry_after } else { None }
    }

    /// The same, where it is a refusal, with another word on that.
    pub(super) fn asking_for(mut self, wait: Duration) -> Self {
        if let Self::Refused { retry_after, .. } = &mut self {
            *retry_after = Some(wait);
        }
        self
    }
}

/// The message in the body of a refusal, fit to be shown: short, printable, and without any of `secrets`.
pub(super) fn message(body: &[u8], secrets: &[&[u8]]) -> String {
    let mut message =
        serde_json::from_slice(body).map(|status: ApiStatus| status.message).unwrap_or_default();
    // Before it is cut short: half a token is one still.
    for secret in secrets {
        if let Ok(secret) = std::str::from_utf8(secret)
            && !secret.is_empty()
        {
            message = message.replace(secret, "(token)");
        }
    }
    speakable(&message)
}

/// A text of somebody else's, short and printable.
pub(crate) fn speakable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}
