//! Why a call is refused, and with which code. Texts travel through the agent to `kubectl describe pod`.

use std::fmt;

use tonic::{Code, Status};

/// Whose token is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The calling agent's.
    Agent,
    /// The workload's.
    Workload,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "the agent's token",
            Self::Workload => "the workload's token",
        })
    }
}

/// What is wrong with a token, or with asking about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenFault {
    /// There is none.
    #[error("is missing")]
    Missing,
    /// It is no service account JWT that is bound to a pod.
    #[error("is no pod-bound service account token: {0}")]
    Malformed(String),
    /// It is past its end.
    #[error("has expired; kubelet's next republish brings a new one")]
    Expired,
    /// Its time has not come.
    #[error("is not valid yet; compare the clocks of issuer and API server")]
    NotYet,
    /// It is for somebody else.
    #[error("is not for audience {wanted:?}; request that audience for it")]
    Audience {
        /// Ours.
        wanted: String,
    },
    /// It is from somewhere else.
    #[error("is not from issuer {wanted:?}; compare --token-issuer with the cluster's")]
    Issuer {
        /// The cluster's.
        wanted: String,
    },
    /// No key of the cluster's made its signature.
    #[error("is not signed by a key of the cluster: {0}")]
    Signature(String),
    /// The API server does not accept it.
    #[error("is refused by the API server: {0}")]
    Rejected(String),
    /// It names no node.
    #[error("names no node; Kubernetes 1.32 and later put the node into pod-bound tokens")]
    NoNode,
    /// Nobody could be asked.
    #[error("can't be reviewed: {0}")]
    Unreviewed(String),
}

/// A refused call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// A token is wrong, or could not be looked at.
    #[error("{whose} {fault}")]
    Token { whose: Whose, fault: TokenFault },
    /// The caller is some other pod.
    #[error("the caller is service account {found}, not an agent ({expected}; --agent-service-account)")]
    NotAgent { found: String, expected: String },
    /// The proof is another pod's.
    #[error("asked for {asked}, but the proof is of {proven}")]
    AnotherPod { asked: String, proven: String },
    /// The workload runs elsewhere.
    #[error(
        "the workload is on node {workload:?} and the calling agent on {agent:?}; an agent serves its own node only"
    )]
    AnotherNode { workload: String, agent: String },
    /// The renewal can't be believed.
    #[error("renewal by key is refused: {0}; kubelet's next republish brings a token")]
    Renewal(String),
    /// The request lacks something or can't be read.
    #[error("the request's {what} {problem}")]
    Malformed { what: &'static str, problem: String },
    /// The root is at its end.
    #[error(
        "the root certificate ends in less than a minute; renew the file of --root-file and restart the issuer"
    )]
    RootEnds,
    /// What would be signed could not be verified yet.
    #[error("this issuer's keys are not published yet; its /readyz says why")]
    NotPublished,
    /// The library refused.
    #[error("the issuer could not sign: {0}")]
    Signing(String),
}

impl Refusal {
    /// The gRPC code: who can heal it decides.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Token { fault, .. } => match fault {
                TokenFault::Missing
                | TokenFault::Malformed(_)
                | TokenFault::Expired
                | TokenFault::NotYet
                | TokenFault::Audience { .. }
                | TokenFault::Issuer { .. }
                | TokenFault::Signature(_)
                | TokenFault::Rejected(_) => Code::Unauthenticated,
                TokenFault::NoNode => Code::PermissionDenied,
                TokenFault::Unreviewed(_) => Code::Unavailable,
            },
            Self::NotAgent { .. } | Self::AnotherPod { .. } | Self::AnotherNode { .. } => {
                Code::PermissionDenied
            }
            Self::Renewal(_) => Code::Unauthenticated,
            Self::Malformed { .. } => Code::InvalidArgument,
            Self::RootEnds | Self::NotPublished => Code::Unavailable,
            Self::Signing(_) => Code::Internal,
        }
    }

    /// One word for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Token { fault, .. } => match fault {
                TokenFault::Missing => "token_missing",
                TokenFault::Malformed(_) => "token_malformed",
                TokenFault::Expired => "token_expired",
                TokenFault::NotYet => "token_not_yet",
                TokenFault::Audience { .. } => "token_audience",
                TokenFault::Issuer { .. } => "token_issuer",
                TokenFault::Signature(_) => "token_signature",
                TokenFault::Rejected(_) => "token_rejected",
                TokenFault::NoNode => "token_without_node",
                TokenFault::Unreviewed(_) => "review_unavailable",
            },
            Self::NotAgent { .. } => "not_agent",
            Self::AnotherPod { .. } => "another_pod",
            Self::AnotherNode { .. } => "another_node",
            Self::Renewal(_) => "renewal",
            Self::Malformed { .. } => "malformed",
            Self::RootEnds => "root_ends",
            Self::NotPublished => "not_published",
            Self::Signing(_) => "signing",
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_who_can_heal_it() {
        let token = |fault| Refusal::Token { whose: Whose::Workload, fault }.code();
        assert_eq!(token(TokenFault::Expired), Code::Unauthenticated);
        assert_eq!(token(TokenFault::Audience { wanted: "countersign".to_owned() }), Code::Unauthenticated);
        assert_eq!(token(TokenFault::NoNode), Code::PermissionDenied);
        assert_eq!(token(TokenFault::Unreviewed("down".to_owned())), Code::Unavailable);
        let node = Refusal::AnotherNode { workload: "a".to_owned(), agent: "b".to_owned() };
        assert_eq!(node.code(), Code::PermissionDenied);
        assert_eq!(Refusal::RootEnds.code(), Code::Unavailable);
    }
}
