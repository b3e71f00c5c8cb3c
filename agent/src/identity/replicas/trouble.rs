//! Why replicas did not help, in words; and whether another may.

use std::fmt;
use std::net::SocketAddr;

use tonic::{Code, Status};

use crate::identity::channel::innermost;

/// Replicas whose trouble a message tells.
const TOLD: usize = 3;
/// A replica that lacks the call.
const UNKNOWN: &str = "it does not know this call: it is of another version; agents and issuer may differ by one, upgrade the older";

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// A replica refuses, and no other will think differently.
    Refused(Status),
    /// Every replica that was reached says that it can't now.
    Unable(String),
    /// None could be asked, or none answered.
    Unreached(String),
}

/// Why one replica did not help.
pub(super) struct Trouble {
    pub(super) address: SocketAddr,
    pub(super) problem: String,
    /// It was reached, and says itself that it can't.
    pub(super) answered: bool,
}

impl Trouble {
    pub(super) fn of(address: SocketAddr, status: &Status) -> Self {
        // What the replica itself says has no cause on our side.
        let source = std::error::Error::source(status);
        let problem = match source {
            Some(source) => cause(source),
            None if status.code() == Code::Unimplemented => UNKNOWN.to_owned(),
            None => status.message().to_owned(),
        };
        Self { address, problem, answered: source.is_none() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.address, self.problem)
    }
}

/// Whether another replica may answer differently: this one could not be reached, or is not up to it.
pub(super) fn may_differ(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::DataLoss
        // A replica of an older version lacks the call; while they are rolled, others have it.
        | Code::Unimplemented
        | Code::Ok => true,
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange => false,
    }
}

/// Why none of the replicas at `address` helps.
pub(super) fn describe(address: &str, troubles: &[Trouble]) -> String {
    match troubles {
        [] => format!("the issuer at {address} has no replica"),
        [trouble] => format!("the issuer at {address}: {}", trouble.problem),
        several => {
            let told: Vec<_> = several.iter().take(TOLD).map(ToString::to_string).collect();
            let (told, count) = (told.join("; "), several.len());
            format!("the issuer at {address}: none of {count} replicas can help: {told}")
        }
    }
}

/// The last cause, which says the most.
pub(super) fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    innermost(error, "of this node and the issuer's")
}
