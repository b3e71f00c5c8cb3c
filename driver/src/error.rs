//! Everything that can go wrong, and the one place that says what gRPC code it is.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use tonic::{Code, Status};

/// What can go wrong in the driver. A message names the key, the cause and the remedy; it ends in a pod event,
/// so it never holds a value that could be secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field that CSI requires is empty.
    #[error("{0} is missing from the request")]
    Missing(&'static str),
    /// A raw block volume was asked for.
    #[error("a block volume was asked for: countersign volumes are directories, use volumeMounts")]
    Block,
    /// Something was set that has no meaning for these volumes.
    #[error("{field} is set: countersign volumes take none, remove it")]
    NotTaken {
        /// Its name in the request or the pod.
        field: &'static str,
    },
    /// The pod did not ask for a read-only volume.
    #[error("the volume is writable: set `readOnly: true` under the volume's csi section of the pod")]
    Writable,
    /// Not an inline ephemeral volume.
    #[error(
        "persistent volumes are not offered: write the volume inline into the pod, under `csi:` with `driver:` and \
         `volumeAttributes:`"
    )]
    Persistent,
    /// Kubelet said nothing about the pod.
    #[error("{key} is missing: the CSIDriver object of this driver needs `podInfoOnMount: true`")]
    NoPodInfo {
        /// The key that kubelet would have set.
        key: &'static str,
    },
    /// The pod's author wrote a key that only kubelet may write.
    #[error("volumeAttributes holds {key}: keys under csi.storage.k8s.io/ are kubelet's own, remove it")]
    Forged {
        /// The key, shortened and escaped.
        key: String,
    },
    /// `nodePublishSecretRef` is set.
    #[error("the volume's nodePublishSecretRef brings the key {key}: countersign takes no Secret, remove it")]
    SecretReference {
        /// The key, shortened and escaped.
        key: String,
    },
    /// Kubelet handed over no service account token.
    #[error(
        "the pod's service account tokens are missing: the CSIDriver object of this driver needs `tokenRequests` and \
         `serviceAccountTokenInSecrets: true` (kubelet 1.34 and older: start the driver with --tokens-from-context)"
    )]
    NoTokens,
    /// The tokens are not the JSON kubelet sends.
    #[error("the pod's service account tokens are not the JSON object that kubelet sends")]
    MalformedTokens,
    /// The pod's group is not a group id.
    #[error("volume_mount_group is not a group id in decimal: kubelet takes it from the pod's fsGroup")]
    Group,
    /// The target path has another shape than kubelet's.
    #[error(
        "target_path is not <kubelet root>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount below {root}: \
         --kubelet-root must be what kubelet runs with"
    )]
    TargetShape {
        /// The kubelet root this driver was started with.
        root: String,
    },
    /// The pod's uid and the target path disagree.
    #[error("csi.storage.k8s.io/pod.uid is not the pod uid in target_path: the request is forged")]
    OtherPod,
    /// The volume id and the target path disagree.
    #[error("volume_id is not csi- and the sha256 of pod uid and volume name: the request is forged")]
    OtherVolume,

    /// An operation on the volume is running.
    #[error("an operation on this volume is running: kubelet tries again")]
    Busy,
    /// The call is not offered at all.
    #[error("{call} is not offered: countersign volumes are inline and ephemeral, {instead}")]
    NotOffered {
        /// The call's name.
        call: &'static str,
        /// What happens instead.
        instead: &'static str,
    },

    /// The directory kubelet makes for the volume is not there.
    #[error("the directory above target_path does not exist: kubelet makes it before it publishes")]
    NoParent,
    /// A symlink stands in the way.
    #[error("{component} below the kubelet root is a symlink: remove it, nothing there may be one")]
    Symlink {
        /// Path of the symlink relative to the kubelet root.
        component: String,
    },
    /// A component is something other than a directory.
    #[error("{component} below the kubelet root is not a directory: remove it")]
    NotADirectory {
        /// Its path relative to the kubelet root.
        component: String,
    },
    /// Another file system is mounted above the target.
    #[error("a file system is mounted between the pods directory and target_path: unmount it")]
    Crossed,
    /// Something that is not this volume is mounted at the target.
    #[error("{fs_type} from {from} is mounted at target_path and is not this volume: unmount it")]
    Foreign {
        /// Its file system type.
        fs_type: String,
        /// Its source as the mount table has it.
        from: String,
    },

    /// Nobody serves the link.
    #[error(
        "the countersign agent is not running on this node: look at container agent of the countersign pod"
    )]
    AgentAbsent,
    /// The agent went away while it worked.
    #[error("the countersign agent went away while it filled the volume: kubelet tries again")]
    AgentLost,
    /// The agent did not answer in time.
    #[error("the countersign agent did not answer within {seconds} s: kubelet tries again")]
    AgentSilent {
        /// How long was waited.
        seconds: u64,
    },
    /// The agent lacks a call, so it is of another version.
    #[error(
        "the countersign agent does not know the call {call}: driver and agent are of different versions, install both \
         from one release"
    )]
    AgentVersion {
        /// Its name in `countersign.agent.v1`.
        call: &'static str,
    },
    /// The agent's own answer, passed on word for word.
    #[error("{message}")]
    Agent {
        /// The agent's code.
        code: Code,
        /// The agent's sentence.
        message: String,
    },
    /// The process at the agent's socket is not the agent.
    #[error("{socket} is served by uid {found}, not by the agent's uid {expected}: see --agent-uid")]
    Peer {
        /// The socket's file name.
        socket: &'static str,
        /// The uid of the process that serves it.
        found: u32,
        /// The uid it has to have.
        expected: u32,
    },
    /// Could not talk to one of the agent's sockets.
    #[error("could not connect to {socket} in the link directory")]
    Dial {
        /// The socket's file name.
        socket: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },

    /// The kernel refused a step.
    #[error("could not {step}")]
    Kernel {
        /// What was tried, as a phrase that follows "could not".
        step: &'static str,
        /// Why it was refused.
        #[source]
        source: Errno,
    },
    /// The task that carried the call out ended without an answer.
    #[error("the call ended without an answer: kubelet tries again")]
    Dropped,

    /// A path is needed at start and can't be had.
    #[error("could not {step} {}", path.display())]
    Path {
        /// What was tried, as a phrase that follows "could not".
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another driver of this name runs on the node.
    #[error(
        "another countersign driver serves kubelet from {}: a node has one driver of this name, remove one of the two \
         installations; this one takes over when the other ends",
        directory.display()
    )]
    Second {
        /// Directory of the CSI socket.
        directory: PathBuf,
    },
    /// Kubelet's root is not the configured one.
    #[error(
        "kubelet's root directory is not {told}: it has made no directory for this pod there{}. Set the chart's value \
         kubeletDir (the driver's --kubelet-root) to what kubelet runs with as --root-dir",
        found.as_ref().map(|path| format!(", but below {} of its file system", path.display())).unwrap_or_default()
    )]
    Elsewhere {
        /// The kubelet root this driver was started with.
        told: String,
        /// The real one, as its file system shows it.
        found: Option<PathBuf>,
    },
    /// The seccomp filter can't be made or installed.
    #[error("could not install the seccomp filter: the driver does not run without it")]
    Sandbox(#[source] seccompiler::Error),
    /// The log can't be set up.
    #[error("could not set up the log")]
    Log(#[source] tracing_subscriber::util::TryInitError),
}

impl Error {
    /// Makes the error of a refused system call; `step` follows "could not".
    pub(crate) const fn kernel(step: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| Self::Kernel { step, source }
    }

    /// The gRPC code kubelet gets. After a *final* code on a first publish kubelet forgets the volume without an
    /// unpublish; `ABORTED`, `CANCELLED`, `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED` and `UNAVAILABLE` are not final.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Missing(_)
            | Self::Block
            | Self::NotTaken { .. }
            | Self::Writable
            | Self::Persistent
            | Self::NoPodInfo { .. }
            | Self::Forged { .. }
            | Self::SecretReference { .. }
            | Self::NoTokens
            | Self::MalformedTokens
            | Self::Group
            | Self::TargetShape { .. }
            | Self::OtherPod
            | Self::OtherVolume => Code::InvalidArgument,
            Self::Busy => Code::Aborted,
            Self::NotOffered { .. } => Code::Unimplemented,
            Self::NoParent
            | Self::Symlink { .. }
            | Self::NotADirectory { .. }
            | Self::Crossed
            | Self::Foreign { .. } => Code::FailedPrecondition,
            Self::AgentAbsent
            | Self::AgentLost
            | Self::AgentVersion { .. }
            | Self::Peer { .. }
            | Self::Dial { .. }
            | Self::Dropped
            | Self::Second { .. }
            | Self::Elsewhere { .. } => Code::Unavailable,
            Self::AgentSilent { .. } => Code::DeadlineExceeded,
            Self::Agent { code, .. } => *code,
            Self::Kernel { source, .. } => refusal(Some(*source)),
            Self::Path { source, .. } => refusal(Errno::from_io_error(source)),
            Self::Sandbox(_) | Self::Log(_) => Code::Internal,
        }
    }
}

/// Short of something that others may give back is worth another try.
fn refusal(errno: Option<Errno>) -> Code {
    match errno {
        Some(
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOSPC | Errno::AGAIN | Errno::TOOMANYREFS,
        ) => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

/// The error and its causes in one sentence.
pub(crate) fn sentence(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), sentence(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_carries_the_cause() {
        let status = Status::from(Error::Kernel { step: "make a tmpfs", source: Errno::PERM });
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().starts_with("could not make a tmpfs: "), "{}", status.message());
        assert!(status.message().contains("not permitted"), "{}", status.message());
    }

    #[test]
    fn a_shortage_is_not_final() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOSPC] {
            assert_eq!(Error::kernel("x")(errno).code(), Code::ResourceExhausted);
        }
    }

    #[test]
    fn the_agent_speaks_for_itself() {
        let status = Status::from(Error::Agent {
            code: Code::PermissionDenied,
            message: "store vault: denied".into(),
        });
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "store vault: denied"));
    }
}
