//! gRPC channels over SPIRE's Unix sockets.
//!
//! A channel connects when it is first used and again after every failure, and it is the path that is dialled: a
//! restarted SPIRE agent, whose socket is another file of the same name, is found by itself.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, OtherError};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

/// How long connecting may take, a handshake included.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a connection is tried while streams are open, so that an agent that hangs is found.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The absolute path of a Unix socket, which may be written as the SPIFFE standard does: `unix:///run/…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket(PathBuf);

impl Socket {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl std::fmt::Display for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Why a text names no socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a socket's absolute path, such as /run/spire/broker/broker.sock or unix:///run/spire/broker/broker.sock"
)]
pub struct NoSocket;

impl FromStr for Socket {
    type Err = NoSocket;

    fn from_str(text: &str) -> Result<Self, NoSocket> {
        let path = match text.strip_prefix("unix:") {
            // `unix:/a` and `unix:///a` are the same (SPIFFE Workload Endpoint §4); an authority is not possible.
            Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
            None => text,
        };
        if path.starts_with('/') && !path.starts_with("//") && !path.ends_with('/') {
            Ok(Self(path.into()))
        } else {
            Err(NoSocket)
        }
    }
}

fn endpoint() -> Endpoint {
    // The address is never resolved; it is the `:authority` that the server sees.
    Endpoint::from_static("http://spire")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(CONNECT)
}

/// A channel in the clear.
pub(super) fn plain(socket: &Socket) -> Channel {
    let socket = socket.clone();
    endpoint().connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { dial(&socket).await.map(TokioIo::new) }
    }))
}

/// A channel with TLS inside, configured anew for each connection by `config`.
pub(super) fn secured<C>(socket: &Socket, config: C) -> Channel
where
    C: Fn() -> io::Result<Arc<ClientConfig>> + Clone + Send + Sync + 'static,
{
    let socket = socket.clone();
    endpoint().origin(Uri::from_static("https://spire")).connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let (socket, config) = (socket.clone(), config.clone());
            async move { handshake(&socket, config()?).await.map(TokioIo::new) }
        },
    ))
}

/// Connects, shakes hands and hangs up.
pub(super) async fn knock(socket: &Socket, config: Arc<ClientConfig>) -> io::Result<()> {
    handshake(socket, config).await.map(drop)
}

async fn dial(socket: &Socket) -> io::Result<UnixStream> {
    UnixStream::connect(socket.path()).await.map_err(|error| {
        let remedy = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT) => {
                "; is the SPIRE agent configured to have this socket, and is its directory mounted here?"
            }
            Some(Errno::ACCESS) => {
                "; SPIRE gives its sockets to one group: run this agent with it (supplementalGroups)"
            }
            Some(Errno::CONNREFUSED) => "; nobody listens: is the SPIRE agent running?",
            _ => "",
        };
        io::Error::new(error.kind(), format!("{socket}: {error}{remedy}"))
    })
}

async fn handshake(socket: &Socket, config: Arc<ClientConfig>) -> io::Result<TlsStream<UnixStream>> {
    let stream = dial(socket).await?;
    // Neither sent nor compared: the server is known by its SPIFFE ID.
    let name = ServerName::try_from("spire").map_err(io::Error::other)?;
    let shaking = TlsConnector::from(config).connect(name, stream);
    match tokio::time::timeout(CONNECT, shaking).await {
        Ok(shaken) => {
            shaken.map_err(|error| io::Error::new(error.kind(), format!("{socket}: {}", reason(&error))))
        }
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{socket}: no TLS handshake within {} s", CONNECT.as_secs()),
        )),
    }
}

/// Why a handshake failed; the TLS library shows what our own verifier says only in a debugger's words.
fn reason(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(stranger)))) => {
            stranger.to_string()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_socket_is_written() {
        for text in ["/run/a.sock", "unix:/run/a.sock", "unix:///run/a.sock"] {
            assert_eq!(text.parse::<Socket>().unwrap().path(), Path::new("/run/a.sock"), "{text}");
        }
        for text in [
            "",
            "run/a.sock",
            "unix:run/a.sock",
            "unix://host/a.sock",
            "tcp://127.0.0.1:1",
            "/run/",
            "unix://",
        ] {
            assert_eq!(text.parse::<Socket>(), Err(NoSocket), "{text}");
        }
    }
}
