//! How kubelet dials: a new connection for every call.

use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_proto::csi::identity_client::IdentityClient;
use countersign_proto::csi::node_client::NodeClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error};
use tower::service_fn;

use crate::pods::hex;

/// Kubelet's limit for every CSI call.
const CALL: Duration = Duration::from_secs(120);

/// Dials a socket and says `authority` in the `:authority` of every request.
pub(super) async fn dial(socket: &Path, authority: &str, limit: Duration) -> Result<Channel, Error> {
    let socket: PathBuf = socket.to_owned();
    let connect = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_shared(format!("http://{authority}"))?.timeout(limit).connect_with_connector(connect).await
}

/// The CSI Node service behind a socket.
pub async fn csi_node(socket: &Path) -> Result<NodeClient<Channel>, tonic::Status> {
    csi(socket).await.map(NodeClient::new)
}

/// The CSI Identity service behind a socket.
pub async fn csi_identity(socket: &Path) -> Result<IdentityClient<Channel>, tonic::Status> {
    csi(socket).await.map(IdentityClient::new)
}

async fn csi(socket: &Path) -> Result<Channel, tonic::Status> {
    let channel = dial(socket, "localhost", CALL).await;
    // Not a gRPC status of the driver's: kubelet's own word for it is UNAVAILABLE, which is no final answer.
    channel.map_err(|error| tonic::Status::unavailable(format!("dialling: {}", chain(&error))))
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The authority that kubelet's plugin manager sends: the socket's path, escaped as grpc-go does it, for it names
/// no authority of its own.
pub(super) fn plugin_manager_authority(socket: &Path) -> String {
    let path = socket.to_string_lossy();
    path.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.extend(["%", &hex(&[byte]).to_uppercase()]);
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_the_escaped_path() {
        let socket = Path::new("/var/lib/kubelet/plugins_registry/csi.countersign.dev@reg.sock");
        assert_eq!(
            plugin_manager_authority(socket),
            "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fcsi.countersign.dev@reg.sock"
        );
    }
}
