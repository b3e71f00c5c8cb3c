//! The mailbox: a `SOCK_SEQPACKET` socket of the agent's; each packet is a key and one descriptor.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use countersign_proto::agent::{MAILBOX_KEY_BYTES, MAILBOX_SOCKET};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, socket_with,
};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::error::Error;

/// The driver's end of the mailbox. The agent never writes to it: an end of file tells that the agent is gone.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// A stream in name only: tokio's type waits for the socket, and neither reads nor writes it here.
    socket: UnixStream,
}

impl Mailbox {
    /// Connects to the mailbox in `directory`, which has to be served by `agent_uid`.
    pub(super) fn dial(directory: &Path, agent_uid: u32) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Dial { socket: MAILBOX_SOCKET, source };
        let refused = |errno: Errno| failed(errno.into());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(refused)?;
        let address = SocketAddrUnix::new(directory.join(MAILBOX_SOCKET)).map_err(refused)?;
        connect(&socket, &address).map_err(refused)?;
        let socket = UnixStream::from_std(socket.into()).map_err(failed)?;
        // Tokio's way, not rustix's: the agent of a real pod is in another process namespace, and so has no process id
        // here, which rustix 1.1 takes for an error without a number.
        let found = socket.peer_cred().map_err(failed)?.uid();
        if found != agent_uid {
            return Err(Error::Peer { socket: MAILBOX_SOCKET, found, expected: agent_uid });
        }
        Ok(Self { socket })
    }

    /// Sends a descriptor under a key that nobody can guess, and closes it on this side.
    pub(super) async fn send(&self, descriptor: OwnedFd) -> Result<[u8; MAILBOX_KEY_BYTES], Error> {
        let mut key = [0; MAILBOX_KEY_BYTES];
        let drawn =
            getrandom(&mut key, GetRandomFlags::empty()).map_err(Error::kernel("draw a mailbox key"))?;
        if drawn != key.len() {
            return Err(Error::Kernel { step: "draw a mailbox key", source: Errno::IO });
        }
        let packet = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [descriptor.as_fd()];
            if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(Errno::NOBUFS.into());
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            sendmsg(&self.socket, &[IoSlice::new(&key)], &mut control, flags).map_err(io::Error::from)
        };
        match self.socket.async_io(Interest::WRITABLE, packet).await {
            // A packet of this kind is sent whole or not at all.
            Ok(_) => Ok(key),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED) => {
                    Err(Error::AgentLost)
                }
                errno => Err(Error::Kernel {
                    step: "hand the volume to the agent",
                    source: errno.unwrap_or(Errno::IO),
                }),
            },
        }
    }

    /// Returns when the agent has closed its end, or broken the protocol by writing to it.
    pub(super) async fn closed(&self) {
        let look = || {
            let mut nothing = [0_u8; 1];
            recv(&self.socket, &mut nothing, RecvFlags::DONTWAIT).map(drop).map_err(io::Error::from)
        };
        // An error that is not "not yet" is an end as well.
        self.socket.async_io(Interest::READABLE, look).await.ok();
    }
}
