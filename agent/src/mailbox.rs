//! The mailbox: where the driver leaves directory descriptors for requests that name them.
//!
//! gRPC cannot carry descriptors, so they travel beside it: each packet on a `SOCK_SEQPACKET` socket is a key of
//! 16 bytes with one descriptor attached (`SCM_RIGHTS`, unix(7)). The driver sends the packet first and the request that
//! names the key after it; either may be read first, so a request waits a moment for its packet.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_proto::agent::MAILBOX_KEY_BYTES;
use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketAddrUnix,
    SocketFlags, SocketType, accept_with, bind, listen, recvmsg, socket_with,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// Most descriptors that may lie unclaimed: a storm of publishes fits, a driver gone mad does not.
const UNCLAIMED_LIMIT: usize = 1024;
/// How long a request waits for the packet it names.
const PATIENCE: Duration = Duration::from_secs(5);

/// Names one packet.
pub type MailboxKey = [u8; MAILBOX_KEY_BYTES];

/// The descriptors that came and were not claimed yet.
#[derive(Debug, Clone)]
pub struct Mailbox {
    letters: Arc<Mutex<HashMap<MailboxKey, Letter>>>,
    arrivals: watch::Sender<u64>,
}

#[derive(Debug)]
struct Letter {
    descriptor: OwnedFd,
    /// The connection it came on: what a driver that died left behind goes with its connection.
    connection: u64,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self { letters: Arc::default(), arrivals: watch::Sender::new(0) }
    }
}

impl Mailbox {
    /// Takes the descriptor that came under `key`, waiting a moment for it; none if it does not come.
    pub async fn claim(&self, key: &MailboxKey) -> Option<OwnedFd> {
        let mut arrivals = self.arrivals.subscribe();
        let wait = async {
            loop {
                arrivals.mark_unchanged();
                if let Some(letter) = self.lock().remove(key) {
                    return Some(letter.descriptor);
                }
                arrivals.changed().await.ok()?;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.ok().flatten()
    }

    /// Serves the socket at `path` until `shutdown`. Peers of another uid than `driver_uid` are turned away.
    pub async fn serve(&self, path: &Path, driver_uid: u32, shutdown: CancellationToken) -> io::Result<()> {
        let listener = readable(bound_socket(path)?)?;
        let connections = TaskTracker::new();
        let mut number = 0_u64;
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.async_io(Interest::READABLE, |l| {
                    Ok(accept_with(l, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
                }) => accepted,
            };
            let peer = match accepted {
                Ok(peer) => peer,
                Err(error) => {
                    warn!(%error, "mailbox: a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (peer, uid) = match identified(peer) {
                Ok(identified) => identified,
                Err(error) => {
                    warn!(%error, "mailbox: a peer that cannot be told was turned away");
                    continue;
                }
            };
            if uid != driver_uid {
                warn!(uid, expected = driver_uid, "mailbox: a peer of another uid was turned away");
                continue;
            }
            number += 1;
            let (this, shutdown) = (self.clone(), shutdown.clone());
            connections.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    ended = this.read(peer, number) => debug!(?ended, number, "mailbox: connection ended"),
                }
                this.lock().retain(|_, letter| letter.connection != number);
            });
        }
        connections.close();
        connections.wait().await;
        Ok(())
    }

    async fn read(&self, peer: OwnedFd, connection: u64) -> io::Result<()> {
        let peer = readable(peer)?;
        loop {
            let Some((key, descriptor)) = peer.async_io(Interest::READABLE, receive).await? else {
                return Ok(());
            };
            let mut letters = self.lock();
            if letters.len() >= UNCLAIMED_LIMIT {
                warn!(
                    limit = UNCLAIMED_LIMIT,
                    "mailbox: full of unclaimed descriptors; one more was dropped"
                );
                continue;
            }
            letters.insert(key, Letter { descriptor, connection });
            drop(letters);
            self.arrivals.send_modify(|count| *count += 1);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<MailboxKey, Letter>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches `descriptor` for something to read.
#[expect(
    deprecated,
    reason = "what replaces it is unsafe for the sake of types that lie; an OwnedFd stays open and the same"
)]
fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

/// A connection and the uid of its peer. By tokio's way, not rustix's: the driver of a real pod is in another process
/// namespace, and so has no process id here, which rustix 1.1 takes for an error without a number.
fn identified(peer: OwnedFd) -> io::Result<(OwnedFd, u32)> {
    // A stream in name only: the question is the same for every kind of Unix socket.
    let stream = UnixStream::from_std(peer.into())?;
    let uid = stream.peer_cred()?.uid();
    Ok((stream.into_std()?.into(), uid))
}

/// One packet; none at the end of the connection.
fn receive(peer: &OwnedFd) -> io::Result<Option<(MailboxKey, OwnedFd)>> {
    let mut key = MailboxKey::default();
    // Room for more than one descriptor, so that extra ones are seen and closed, not left in the socket.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut key)];
    let got = recvmsg(peer, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if got.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    let whole = got.bytes == MAILBOX_KEY_BYTES && !got.flags.contains(ReturnFlags::TRUNC);
    match (descriptors.pop(), descriptors.is_empty(), whole) {
        (Some(descriptor), true, true) => Ok(Some((key, descriptor))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a key with one descriptor")),
    }
}

fn bound_socket(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    private_bind(&socket, path)?;
    listen(&socket, 16)?;
    Ok(socket)
}

/// Binds a Unix socket that nobody else could ever open: the mode of the file is that of the unbound socket.
pub(crate) fn private_bind(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    rustix::fs::fchmod(socket, Mode::RUSR | Mode::WUSR)?;
    bind(socket, &SocketAddrUnix::new(path)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, connect, sendmsg};

    use super::*;

    fn send(socket: &OwnedFd, bytes: &[u8], descriptors: usize) {
        let file = std::fs::File::open("/dev/null").unwrap();
        let borrowed = vec![file.as_fd(); descriptors];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if descriptors > 0 {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
    }

    fn dial(path: &Path) -> OwnedFd {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        socket
    }

    async fn scene(driver_uid: u32, play: impl AsyncFnOnce(&Path, &Mailbox)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mailbox.sock");
        let (mailbox, shutdown) = (Mailbox::default(), CancellationToken::new());
        let server = mailbox.serve(&path, driver_uid, shutdown.clone());
        let story = async {
            while !path.exists() {
                tokio::task::yield_now().await;
            }
            play(&path, &mailbox).await;
            shutdown.cancel();
        };
        let (ended, ()) = tokio::join!(server, story);
        ended.unwrap();
    }

    fn own_uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[tokio::test]
    async fn a_descriptor_is_claimed_once_by_its_key() {
        scene(own_uid(), async |path, mailbox| {
            let socket = dial(path);
            send(&socket, &[7; 16], 1);
            assert!(mailbox.claim(&[7; 16]).await.is_some());
            assert!(!mailbox.lock().contains_key(&[7; 16]));
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        })
        .await;
    }

    #[tokio::test]
    async fn a_request_may_come_before_its_packet() {
        scene(own_uid(), async |path, mailbox| {
            let socket = dial(path);
            let (claimed, ()) = tokio::join!(mailbox.claim(&[1; 16]), async {
                tokio::task::yield_now().await;
                send(&socket, &[2; 16], 1);
                send(&socket, &[1; 16], 1);
            });
            assert!(claimed.is_some());
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_no_letter_ends_the_connection_and_what_it_left_goes_with_it() {
        for (bytes, descriptors) in [(&[1_u8; 15][..], 1), (&[1; 16], 0), (&[1; 16], 2), (&[1; 17], 1)] {
            scene(own_uid(), async |path, mailbox| {
                let socket = dial(path);
                send(&socket, &[9; 16], 1);
                send(&socket, bytes, descriptors);
                // The peer hangs up: a read ends.
                let hung_up = tokio::task::spawn_blocking(move || rustix::io::read(&socket, &mut [0; 1]));
                assert_eq!(hung_up.await.unwrap(), Ok(0), "{} bytes, {descriptors} descriptors", bytes.len());
                while !mailbox.lock().is_empty() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    }

    #[tokio::test]
    async fn a_peer_of_another_uid_is_turned_away() {
        scene(own_uid() + 1, async |path, mailbox| {
            let socket = dial(path);
            let hung_up = tokio::task::spawn_blocking(move || rustix::io::read(&socket, &mut [0; 1]));
            assert_eq!(hung_up.await.unwrap(), Ok(0));
            assert!(mailbox.lock().is_empty());
        })
        .await;
    }
}
