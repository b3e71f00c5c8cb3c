//! Why a server gave no answer with a meaning, in words that say what to do.

use std::time::Duration;

/// Why one server gave no answer with a meaning.
pub(super) struct Trouble {
    pub(super) problem: String,
    /// The request may have been carried out.
    pub(super) perhaps_done: bool,
    pub(super) retry_after: Option<Duration>,
    /// Scheme, host and port of the server that it names in its place.
    pub(super) sent_to: Option<String>,
}

impl Trouble {
    /// Nothing was carried out.
    pub(super) fn before(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), perhaps_done: false, retry_after: None, sent_to: None }
    }

    /// Nobody knows how far it came.
    pub(super) fn midway(problem: impl Into<String>) -> Self {
        Self { perhaps_done: true, ..Self::before(problem) }
    }
}

/// Why a request could not be made, with what to do where that is known.
pub(super) fn unsent(error: &hyper_util::client::legacy::Error) -> String {
    let cause = innermost(error);
    let remedy = if cause.contains("InvalidContentType") {
        "; it does not speak TLS: is this its plain HTTP port?"
    } else if cause.contains("UnknownIssuer") || cause.contains("BadSignature") {
        "; its certificate was signed by none of the roots in caFile"
    } else if cause.contains("not valid for name") {
        "; set serverName to a name its certificate has"
    } else if cause.contains("certificate expired") || cause.contains("not valid yet") {
        "; renew it, or look at the clocks"
    } else {
        ""
    };
    format!("{cause}{remedy}")
}

/// The cause behind all others, which says most.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}
