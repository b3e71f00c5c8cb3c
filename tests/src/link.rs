//! The driver's end of the link, spoken by the kit: for machines where nothing can be mounted. The agent can't
//! tell the difference; it is handed a directory.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use countersign_proto::agent::agent_client::AgentClient;
use countersign_proto::agent::{
    AGENT_SOCKET, ForgetRequest, MAILBOX_KEY_BYTES, MAILBOX_SOCKET, Pod as LinkPod, PublishRequest,
    ReconcileRequest, Token,
};
use hyper_util::rt::TokioIo;
use rand::Rng;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::pods::Pod;

/// A connection to an agent.
#[derive(Debug)]
pub struct Link {
    client: AgentClient<Channel>,
    /// Kept open: what was sent and not claimed yet goes with its connection.
    mailbox: OwnedFd,
}

impl Link {
    /// Connects to the sockets in the link directory.
    pub async fn open(directory: &Path) -> Result<Self> {
        let mailbox = mailbox(&directory.join(MAILBOX_SOCKET))?;
        let socket = directory.join(AGENT_SOCKET);
        let connect = service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await?;
        Ok(Self { client: AgentClient::new(channel), mailbox })
    }

    /// Has the agent fill a directory for a pod's volume.
    pub async fn publish(
        &mut self,
        volume_id: &str,
        pod: &Pod,
        attributes: &std::collections::BTreeMap<String, String>,
        token: Token,
        directory: Option<BorrowedFd<'_>>,
    ) -> Result<(), Status> {
        let mailbox_key = match directory {
            Some(directory) => {
                self.post(directory).map_err(|error| Status::unavailable(format!("{error:#}")))?
            }
            None => Vec::new(),
        };
        let request = PublishRequest {
            volume_id: volume_id.to_owned(),
            pod: Some(LinkPod {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                service_account: pod.service_account.clone(),
            }),
            attributes: attributes.clone().into_iter().collect(),
            tokens: vec![token],
            mailbox_key,
            provisional: false,
            fs_group: pod.fs_group,
            capacity_bytes: 4 << 20,
            signals: false,
        };
        self.client.publish(request).await.map(drop)
    }

    /// Ends a volume.
    pub async fn forget(&mut self, volume_id: &str) -> Result<(), Status> {
        self.client.forget(ForgetRequest { volume_id: volume_id.to_owned() }).await.map(drop)
    }

    /// Tells the agent which volumes there are, and is told which of them it holds.
    pub async fn reconcile(&mut self, volume_ids: Vec<String>) -> Result<Vec<String>, Status> {
        self.client.reconcile(ReconcileRequest { volume_ids }).await.map(|answer| answer.into_inner().held)
    }

    /// Sends a descriptor under a new key.
    fn post(&self, directory: BorrowedFd<'_>) -> Result<Vec<u8>> {
        let key: [u8; MAILBOX_KEY_BYTES] = rand::rng().random();
        send(&self.mailbox, &key, directory)?;
        Ok(key.to_vec())
    }
}

fn mailbox(path: &Path) -> Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?).with_context(|| path.display().to_string())?;
    Ok(socket)
}

fn send(socket: &OwnedFd, key: &[u8], directory: BorrowedFd<'_>) -> Result<()> {
    let descriptors = [directory];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket.as_fd(), &[IoSlice::new(key)], &mut control, SendFlags::NOSIGNAL)
        .context("the mailbox")?;
    Ok(())
}
