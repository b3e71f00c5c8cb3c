//! The agent's one error, and the one place where it becomes a gRPC code.
//!
//! Variants say what kind of trouble it is, for that decides who can heal it and so the code; the text inside
//! says what, why and what to do. Texts reach `kubectl describe pod`: they never carry a secret.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::{Code, Status};

/// Keys that a message names before it counts the rest.
const NAMED: usize = 3;

/// What can go wrong between a request and its files.
///
/// Cheap to clone: an error of a shared fetch is handed to every volume that waits for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Something else of these, met on behalf of what these keys ask for. The stores and the cache do not know the keys, for
    /// a secret is shared by all who ask for it: the turn adds them.
    #[error("{keys}: {error}")]
    AskedBy {
        /// The annotations or attributes, some of them named and the rest counted.
        keys: String,
        /// What was met.
        error: Box<Error>,
    },
    /// What the pod asks for is malformed or contradicts itself. Only a new pod can heal it.
    #[error("{key}: {problem}")]
    Request {
        /// The annotation or attribute.
        key: String,
        /// Cause and remedy.
        problem: String,
    },
    /// A template does not parse or cannot be rendered.
    #[error("{key}: {problem}")]
    Template {
        /// The annotation or attribute that holds the template.
        key: String,
        /// Cause, line and remedy; never a value.
        problem: String,
    },
    /// The store answered that there is no such secret, or no such field in it.
    #[error("{reference}: {problem}")]
    NotFound {
        /// The reference as the pod wrote it, without options.
        reference: String,
        /// What is missing, and what is there.
        problem: String,
    },
    /// The store's policy does not let this identity read the secret.
    #[error("{reference}: {problem}")]
    Denied {
        /// The reference as the pod wrote it, without options.
        reference: String,
        /// Who was refused, by what, and what would allow it.
        problem: String,
    },
    /// The store does not let this identity in at all. That may be the store's own trouble, such as keys it has not fetched
    /// anew, so it says nothing about the secret.
    #[error("{reference}: {problem}")]
    LoginRefused {
        /// The reference as the pod wrote it, without options.
        reference: String,
        /// Who was refused, why, and what would help.
        problem: String,
    },
    /// The store holds something that cannot be used: a wrong MAC, a missing key, a broken file.
    #[error("store {store}: {problem}")]
    Unusable {
        /// The store's configured name.
        store: String,
        /// Cause and remedy.
        problem: String,
    },
    /// The store does not answer, or says that it can't now.
    #[error("store {store}: {problem}")]
    StoreUnavailable {
        /// The store's configured name.
        store: String,
        /// What was tried and what came back.
        problem: String,
        /// The store's own word on when to come again.
        retry_after: Option<Duration>,
    },
    /// The token is missing, expired, or not for us: kubelet can bring another.
    #[error("identity: {problem}")]
    Unauthenticated {
        /// Cause and remedy.
        problem: String,
    },
    /// The identity source refuses this pod.
    #[error("identity: {problem}")]
    IdentityRefused {
        /// Cause and remedy.
        problem: String,
    },
    /// The identity source has taken back an identity that it gave: nothing is asked in its name any more.
    #[error("identity: {problem}")]
    IdentityWithdrawn {
        /// Cause and remedy.
        problem: String,
    },
    /// The identity source does not answer.
    #[error("identity: {problem}")]
    IdentityUnavailable {
        /// What was tried and what came back.
        problem: String,
    },
    /// The files are larger than the volume.
    #[error(
        "the files need {needed} bytes, the volume holds {capacity}; ask for less, or raise the driver's --volume-capacity"
    )]
    TooLarge {
        /// Bytes of all files together.
        needed: u64,
        /// Bytes the volume may hold.
        capacity: u64,
    },
    /// The directory could not be written. The last good files stay.
    #[error("writing the volume: {operation}: {kind}")]
    Directory {
        /// What was being done.
        operation: &'static str,
        /// The system's word for it, such as `No space left on device`.
        kind: rustix::io::Errno,
    },
    /// The request came without the volume's directory, and the agent holds none.
    #[error("no directory came with the request; the driver sends one with the next try")]
    NoDirectory,
    /// Time ran out before kubelet's would.
    #[error("not done within {} s: {waiting_for}", limit.as_secs())]
    Deadline {
        /// What was being waited for.
        waiting_for: String,
        /// The limit.
        limit: Duration,
    },
    /// A fault of the agent's own: a turn panicked. The log has where; what was at hand is not told.
    #[error(
        "a fault in the agent ended this attempt; it is tried again, and the agent's log says where it happened"
    )]
    Fault,
    /// The volume was forgotten while it was being filled.
    #[error("the volume was unpublished meanwhile")]
    Forgotten,
    /// The agent is shutting down.
    #[error("the agent is shutting down; it will be asked again")]
    ShuttingDown,
}

impl Error {
    /// The gRPC code.
    ///
    /// Kubelet treats CANCELLED, `DEADLINE_EXCEEDED`, UNAVAILABLE, `RESOURCE_EXHAUSTED` and ABORTED as "perhaps
    /// mounted" and the others as final; it tries again after either, so the difference is what the user reads.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::AskedBy { error, .. } => error.code(),
            Self::Request { .. } | Self::Template { .. } => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            Self::Denied { .. }
            | Self::LoginRefused { .. }
            | Self::IdentityRefused { .. }
            | Self::IdentityWithdrawn { .. } => Code::PermissionDenied,
            Self::Unusable { .. } | Self::TooLarge { .. } => Code::FailedPrecondition,
            Self::Unauthenticated { .. } => Code::Unauthenticated,
            Self::StoreUnavailable { .. }
            | Self::IdentityUnavailable { .. }
            | Self::NoDirectory
            | Self::ShuttingDown => Code::Unavailable,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Fault => Code::Internal,
            Self::Forgotten => Code::Aborted,
            Self::Directory { kind, .. } => match *kind {
                rustix::io::Errno::NOSPC | rustix::io::Errno::MFILE | rustix::io::Errno::NFILE => {
                    Code::ResourceExhausted
                }
                _ => Code::Internal,
            },
        }
    }

    /// Whether it was said for certain that this identity has no such secret, or none any more, or that there is no such
    /// identity any more.
    #[must_use]
    pub fn is_withdrawal(&self) -> bool {
        if let Self::AskedBy { error, .. } = self {
            return error.is_withdrawal();
        }
        matches!(self, Self::NotFound { .. } | Self::Denied { .. } | Self::IdentityWithdrawn { .. })
    }

    /// This error, with the keys on whose behalf it was met. What names a key already stays as it is.
    pub(crate) fn asked_by<'k, K: IntoIterator<Item = &'k str>>(self, keys: K) -> Self {
        if matches!(self, Self::AskedBy { .. } | Self::Request { .. } | Self::Template { .. }) {
            return self;
        }
        let keys = BTreeSet::from_iter(keys);
        if keys.is_empty() {
            return self;
        }
        let named: Vec<&str> = keys.iter().copied().take(NAMED).collect();
        let more = match keys.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Self::AskedBy { keys: named.join(", ") + &more, error: Box::new(self) }
    }

    /// A wrong request, by the key that is wrong.
    pub(crate) fn request(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Request { key: key.into(), problem: problem.into() }
    }

    /// One word for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::AskedBy { error, .. } => error.label(),
            Self::Request { .. } => "request",
            Self::Template { .. } => "template",
            Self::NotFound { .. } => "not_found",
            Self::Denied { .. } => "denied",
            Self::LoginRefused { .. } => "login_refused",
            Self::Unusable { .. } => "unusable",
            Self::StoreUnavailable { .. } => "store_unavailable",
            Self::Unauthenticated { .. } => "unauthenticated",
            Self::IdentityRefused { .. } => "identity_refused",
            Self::IdentityWithdrawn { .. } => "identity_withdrawn",
            Self::IdentityUnavailable { .. } => "identity_unavailable",
            Self::TooLarge { .. } => "too_large",
            Self::Directory { .. } => "directory",
            Self::NoDirectory => "no_directory",
            Self::Deadline { .. } => "deadline",
            Self::Fault => "fault",
            Self::Forgotten => "forgotten",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Error {
        Error::Denied { reference: "s:a".to_owned(), problem: "not allowed".to_owned() }
    }

    #[test]
    fn keys_come_first_and_change_nothing_else() {
        for (keys, text) in [
            (&["b", "a", "b"][..], "a, b: s:a: not allowed"),
            (&["d", "b", "e", "a", "c"], "a, b, c and 2 more: s:a: not allowed"),
            (&[], "s:a: not allowed"),
        ] {
            let error = denied().asked_by(keys.iter().copied());
            assert_eq!(error.to_string(), text);
            assert_eq!((error.code(), error.label()), (Code::PermissionDenied, "denied"));
            assert!(error.is_withdrawal());
        }
        let once = denied().asked_by(["a"]);
        assert_eq!(once.clone().asked_by(["b"]), once);
        let request = Error::request("k", "wrong");
        assert_eq!(request.clone().asked_by(["k"]), request);
    }
}
