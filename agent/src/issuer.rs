//! The embedded issuer: from a pod-bound service account token to the pod's SVIDs, for clusters without SPIRE.
//!
//! It believes nobody's word on who a pod is. The calling agent shows its own pod-bound token, and for the
//! workload either the token kubelet handed over with the publish, or a ticket of an earlier answer with a fresh
//! signature by the SVID's key (`ticket` says why that is safe). A reviewer (`review`) turns tokens into facts;
//! `admit` holds them against each other (the pod must be the one named, and on the caller's node); only then
//! `sign` and `jwt` write what the facts say. Keys live in memory, or come from one file (`root`).

mod admit;
mod anchor;
mod bundle;
pub mod config;
mod documents;
mod health;
mod inject;
pub(crate) mod jwt;
mod keys;
mod kubernetes;
mod listening;
mod metrics;
mod offline;
mod publication;
mod refusal;
mod remembered;
mod review;
pub(crate) mod root;
mod serve;
mod service;
mod sign;
mod ticket;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use config::{Args, Config, ReviewerConfig};
pub use serve::Bound;
use tokio_util::sync::CancellationToken;

/// Why the issuer can't start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag whose value can't be used.
    #[error("--{flag}: {problem}")]
    Flag {
        /// The flag's name, without dashes.
        flag: &'static str,
        /// Cause and remedy.
        problem: String,
    },
    /// The file of root and keys.
    #[error("root file {}: {problem}", path.display())]
    RootFile {
        /// Where it is.
        path: PathBuf,
        /// Cause and remedy; nothing of the keys.
        problem: String,
    },
    /// No key or certificate could be made.
    #[error("no root could be made: {0}")]
    Root(String),
    /// The bundle could not be written.
    #[error("the bundle can't be written to {}: {source}", path.display())]
    BundleOut {
        /// Where it should be.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// An address could not be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error("TLS can't be set up: {0}")]
    Tls(#[source] rustls::Error),
}

/// Builds the issuer, listens, and serves until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    Bound::new(config).await?.serve(shutdown).await
}

#[cfg(test)]
pub(crate) mod tests;
