//! What SPIRE's answers mean, and what their reader can do about them.
//!
//! SPIRE sends no error details: the codes say what kind of trouble it is, the texts what to do.

use std::fmt;

use tonic::{Code, Status};

use crate::Error;
use crate::identity::Workload;
use crate::kubernetes::pods::PodError;

/// What became of a question about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// SPIRE does not see the pod: it reads kubelet's list, which is up to half a second old.
    Unseen(String),
    /// SPIRE has no identity for the pod.
    NoEntry(String),
    /// SPIRE says that this pod's identity is not for us.
    Denied(String),
    /// It says nothing about the pod: SPIRE is away, or set up in a way that can't work.
    Down(Error),
}

impl Trouble {
    /// What is told to whoever waits for an identity.
    pub(super) fn error(&self) -> Error {
        match self {
            Self::Unseen(problem) | Self::NoEntry(problem) => unavailable(problem),
            Self::Denied(problem) => refused(problem),
            Self::Down(error) => error.clone(),
        }
    }
}

/// Who speaks to SPIRE, for remedies: the SPIFFE ID that its configuration must name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Us<'a>(pub(super) Option<&'a str>);

impl fmt::Display for Us<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.unwrap_or("<this agent's SPIFFE ID>"))
    }
}

/// The meaning of a refusal by the Broker API.
pub(super) fn of_broker(status: &Status, workload: &Workload, us: Us<'_>) -> Trouble {
    let text = said(status);
    let Workload { namespace, .. } = workload;
    match status.code() {
        Code::NotFound => Trouble::Unseen(format!(
            "SPIRE does not see pod {workload} on this node: {text}; it is asked again until kubelet shows the pod to it"
        )),
        Code::PermissionDenied => {
            let remedy = if text.contains("Kubernetes authorizer") {
                format!(
                    "let `User {us}` use the verb impersonate-via-spire on pods in namespace {namespace} (a RoleBinding there)"
                )
            } else if text.contains("reference type") {
                "add type.googleapis.com/spiffe.broker.KubernetesObjectReference to allowed_reference_types of this broker in the SPIRE agent's broker block".to_owned()
            } else if text.contains("is not configured") {
                format!("add {us} to experimental.broker.brokers of the SPIRE agent's k8s workload attestor")
            } else if text.contains("no identity issued") {
                return no_entry(workload);
            } else {
                format!("see whether SPIRE's broker block and the RBAC of namespace {namespace} name {us}")
            };
            Trouble::Denied(format!("SPIRE refuses pod {workload}: {text}; {remedy}"))
        }
        Code::Unimplemented => Trouble::Down(refused(format!(
            "SPIRE can't attest pod {workload}: {text}; the Broker API needs SPIRE 1.15.2 or newer, and the k8s workload attestor with an experimental.broker block"
        ))),
        Code::InvalidArgument => Trouble::Down(refused(format!(
            "SPIRE does not understand what it is asked for pod {workload}: {text}"
        ))),
        Code::Internal if text.contains("broker configuration missing") => Trouble::Down(refused(format!(
            "SPIRE can't attest pod {workload}: {text}; give the SPIRE agent's k8s workload attestor an experimental.broker block that names {us}"
        ))),
        // With access_policy "enforced", and a service account that may not ask.
        Code::Internal if text.contains("check Kubernetes authorization") => {
            Trouble::Down(unavailable(format!(
                "SPIRE can't ask Kubernetes whether we may have pod {workload}: {text}; let the SPIRE agent's service account create subjectaccessreviews.authorization.k8s.io"
            )))
        }
        Code::Internal
        | Code::Unauthenticated
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::DataLoss => Trouble::Down(down(status, &text, us)),
    }
}

/// The meaning of a refusal by the Delegated Identity API. Its denials are about us and never about a pod, so no pod
/// loses anything by them: a SPIRE agent that was attested anew does not know us for some seconds either.
pub(super) fn of_delegated(status: &Status, workload: &Workload, us: Us<'_>) -> Trouble {
    let text = said(status);
    match status.code() {
        Code::PermissionDenied if text.contains("no identity issued") => Trouble::Down(unavailable(format!(
            "SPIRE has no registration entry for this agent itself, or none for pod {workload}: {text}"
        ))),
        Code::PermissionDenied => Trouble::Down(refused(format!(
            "SPIRE refuses this agent: {text}; add {us} to authorized_delegates of the SPIRE agent"
        ))),
        Code::Unimplemented => Trouble::Down(refused(format!(
            "SPIRE's admin socket has no Delegated Identity API: {text}; set admin_socket_path and authorized_delegates of the SPIRE agent"
        ))),
        Code::InvalidArgument => Trouble::Down(refused(format!(
            "SPIRE does not understand what it is asked for pod {workload}: {text}"
        ))),
        Code::NotFound
        | Code::Internal
        | Code::Unauthenticated
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::DataLoss => Trouble::Down(down(status, &text, us)),
    }
}

/// What it means that a pod could not be read from the API server.
pub(super) fn of_pod(error: &PodError) -> Trouble {
    match error {
        PodError::Gone { .. } | PodError::Another { .. } => Trouble::Unseen(error.to_string()),
        PodError::Elsewhere { .. } => Trouble::Denied(error.to_string()),
        PodError::Forbidden { .. } => Trouble::Down(refused(error.to_string())),
        PodError::Api(_) => Trouble::Down(unavailable(error.to_string())),
    }
}

/// The same where we know what the pod is, for we have said it: `selectors` in words.
pub(super) fn no_entry_for(workload: &Workload, selectors: &str) -> Trouble {
    Trouble::NoEntry(format!(
        "SPIRE has no registration entry for pod {workload}; its selectors are {selectors}, and none of a container before it \
         runs; the entry's parent must be this node's SPIRE agent"
    ))
}

/// Nothing but a new entry heals it.
pub(super) fn no_entry(workload: &Workload) -> Trouble {
    let Workload { namespace, service_account, pod_uid, .. } = workload;
    Trouble::NoEntry(format!(
        "SPIRE has no registration entry for pod {workload}; its selectors include k8s:ns:{namespace}, \
         k8s:sa:{service_account} and k8s:pod-uid:{pod_uid}, and none of a container or an image before it runs; the entry's \
         parent must be this node's SPIRE agent"
    ))
}

fn down(status: &Status, text: &str, us: Us<'_>) -> Error {
    // A server that does not want us may be gone before its alert has been read.
    let hung_up = ["received fatal alert", "Broken pipe", "Connection reset"];
    let remedy = if hung_up.iter().any(|words| text.contains(words)) {
        format!(
            "; if it goes on, the SPIRE agent refuses our own identity: add {us} to brokers in its experimental.broker block"
        )
    } else {
        String::new()
    };
    let code = status.code();
    // What the transport says is a sentence; what SPIRE says is better read with its code.
    if std::error::Error::source(status).is_some() {
        unavailable(format!("SPIRE: {text}{remedy}"))
    } else {
        unavailable(format!("SPIRE answers {code:?}: {text}{remedy}"))
    }
}

/// The last cause of a status: "connection refused" says more than "transport error".
pub(super) fn innermost(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut text = None;
    while let Some(error) = cause {
        text = Some(error.to_string());
        cause = error.source();
    }
    text.unwrap_or_else(|| status.message().to_owned())
}

/// What was said, in bounds.
fn said(status: &Status) -> String {
    innermost(status).chars().filter(|c| !c.is_control()).take(400).collect()
}

pub(super) fn unavailable(problem: impl Into<String>) -> Error {
    Error::IdentityUnavailable { problem: problem.into() }
}

pub(super) fn refused(problem: impl Into<String>) -> Error {
    Error::IdentityRefused { problem: problem.into() }
}
