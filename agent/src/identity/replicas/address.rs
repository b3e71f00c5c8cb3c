//! Where the replicas are: from `HOST:PORT` to addresses.

use std::net::SocketAddr;
use std::time::Duration;

use crate::identity::trust::TrustError;

/// How long looking up a name may take.
const LOOKUP: Duration = Duration::from_secs(5);

/// Why no replica could be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NoReplica {
    /// The roots.
    #[error("{0}")]
    Trust(TrustError),
    /// The flag.
    #[error("the issuer's address {address:?} is not HOST:PORT, or several with commas between them")]
    Address {
        /// As it was given.
        address: String,
    },
    /// The name.
    #[error("the issuer's address {address} can't be resolved: {problem}")]
    Unresolved {
        /// As it was given.
        address: String,
        /// The resolver's word.
        problem: String,
    },
    /// The TLS library's refusal.
    #[error("TLS can't be configured: {0}")]
    Tls(rustls::Error),
}

/// The addresses behind `HOST:PORT`, or behind several with commas between them.
pub(super) async fn lookup(text: &str) -> Result<Vec<SocketAddr>, NoReplica> {
    let malformed = || NoReplica::Address { address: text.to_owned() };
    let mut all = Vec::new();
    let mut last = None;
    for one in text.split(',').map(str::trim) {
        let (host, port) = one.rsplit_once(':').ok_or_else(malformed)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(malformed());
        }
        match tokio::time::timeout(LOOKUP, tokio::net::lookup_host(one)).await {
            Ok(Ok(found)) => all.extend(found),
            Ok(Err(error)) => last = Some(error.to_string()),
            Err(_) => last = Some(format!("no answer within {} s", LOOKUP.as_secs())),
        }
    }
    all.sort_unstable();
    all.dedup();
    match last {
        Some(problem) if all.is_empty() => Err(NoReplica::Unresolved { address: text.to_owned(), problem }),
        Some(_) | None => Ok(all),
    }
}
