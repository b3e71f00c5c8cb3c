//! The CSI node driver of Countersign.
//!
//! It mounts, and nothing else: kubelet's calls come in over a Unix socket, each volume is a tmpfs of its own, and
//! the agent, which holds the secrets and no privilege, fills it through a descriptor. The driver keeps no file:
//! what it has to know after a restart is in the kernel's mount table.

pub mod config;
pub mod error;
mod executor;
mod fault;
pub mod identity;
pub mod inflight;
pub mod link;
pub mod log;
pub mod mount;
pub mod mountinfo;
pub mod node;
pub mod probe;
pub mod process;
mod publish;
pub mod recovery;
pub mod registration;
pub mod request;
pub mod sandbox;
mod serving;
pub mod signaller;
pub mod signals;
pub mod sockets;
pub mod sole;
pub mod status;
pub mod target;
mod unpublish;
pub mod volume;
pub mod volumes;
pub mod whereabouts;
