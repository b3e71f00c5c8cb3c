//! One driver a node: who serves the CSI socket holds a lock on its directory, and who comes second stands by.
//!
//! Two drivers of one name would take each other's sockets away, and kubelet's registration with them. The lock is the
//! kernel's, flock(2), and ends with its process however that ends: nothing stays that a later driver would have to judge.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use tokio::time::sleep;

use crate::config::Config;
use crate::error::{Error, sentence};
use crate::{sockets, status};

/// Wait between two looks whether the other driver has ended.
const AGAIN: Duration = Duration::from_millis(500);

/// The right to serve the CSI socket, for as long as it is held.
#[derive(Debug)]
pub struct Sole {
    _directory: OwnedFd,
}

/// Takes the right to serve `csi_socket`.
///
/// # Errors
/// [`Error::Second`] when another process has it, [`Error::Path`] when nobody can.
pub fn claim(csi_socket: &Path) -> Result<Sole, Error> {
    sockets::private_directory_of(csi_socket)?;
    let path = csi_socket.parent().unwrap_or(csi_socket);
    let failed = |errno: Errno| Error::Path { step: "lock", path: path.to_owned(), source: errno.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(path, flags, Mode::empty()).map_err(failed)?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Sole { _directory: directory }),
        Err(Errno::WOULDBLOCK) => Err(Error::Second { directory: path.to_owned() }),
        Err(errno) => Err(failed(errno)),
    }
}

/// Takes that right, or stands by until the driver that has it ends.
///
/// # Errors
/// [`Error::Path`].
pub async fn wait(config: &Config) -> Result<Sole, Error> {
    let other = match claim(&config.csi_socket) {
        Err(other @ Error::Second { .. }) => sentence(&other),
        claimed => return claimed,
    };
    let claiming = async {
        loop {
            sleep(AGAIN).await;
            let claimed = claim(&config.csi_socket);
            if !matches!(claimed, Err(Error::Second { .. })) {
                return claimed;
            }
        }
    };
    let claimed = status::stand_by(&config.link_dir, &other, claiming).await?;
    tracing::info!("the other driver has ended: this one takes over");
    claimed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_stays() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("plugins/x/csi.sock");
        let first = claim(&socket).unwrap();
        let told = sentence(&claim(&socket).unwrap_err());
        assert!(told.contains("plugins/x: a node has one driver of this name"), "{told}");
        drop(first);
        claim(&socket).unwrap();
        assert_eq!(std::fs::read_dir(socket.parent().unwrap()).unwrap().count(), 0);
    }
}
