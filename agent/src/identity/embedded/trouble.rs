//! What goes wrong with the issuer, in the agent's own terms.

use tonic::{Code, Status};

use crate::Error;
use crate::identity::svid::Broken;

/// The issuer's codes become ours: who can heal it decides.
pub(super) fn refusal(status: &Status) -> Error {
    let problem = format!("the issuer refuses: {}", status.message());
    if status.code() == Code::Unauthenticated { Error::Unauthenticated { problem } } else { refused(problem) }
}

pub(super) fn unavailable(problem: impl Into<String>) -> Error {
    Error::IdentityUnavailable { problem: problem.into() }
}

pub(super) fn refused(problem: impl Into<String>) -> Error {
    Error::IdentityRefused { problem: problem.into() }
}

pub(super) fn unusable(what: &str, broken: &Broken) -> Error {
    refused(format!("the {what} that the issuer sent can't be used: {broken}"))
}
