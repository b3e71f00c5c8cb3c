//! Sockets that are there, with the right mode, from the moment they can be connected to.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::net::UnixListener;

use crate::error::Error;

/// Whom a socket's mode lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// This user.
    Owner,
    /// Whoever reaches the directory.
    Everyone,
}

/// Listens at `path`, in place of a socket that an earlier process left there.
///
/// # Errors
/// [`Error::Path`]; also when something other than a socket is at `path`.
pub fn listen(path: &Path, audience: Audience) -> Result<UnixListener, Error> {
    let failed = |source| Error::Path { step: "listen at", path: path.to_owned(), source };
    remove(path).map_err(failed)?;
    // The mode of a new socket is what the umask leaves, so there is no moment at which it is another one. The umask
    // is the process's: nothing else makes files here.
    let before = umask(match audience {
        Audience::Owner => Mode::from_raw_mode(0o177),
        Audience::Everyone => Mode::from_raw_mode(0o111),
    });
    let listener = UnixListener::bind(path);
    umask(before);
    listener.map_err(failed)
}

/// Makes the directory of a socket, for this user alone, unless it is there.
///
/// # Errors
/// [`Error::Path`].
pub fn private_directory_of(path: &Path) -> Result<(), Error> {
    let Some(directory) = path.parent() else { return Ok(()) };
    let failed = |source| Error::Path { step: "make the directory", path: directory.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)
}

/// Removes the socket at `path`, if there is one. Anything else is left where it is.
///
/// # Errors
/// When it can't be removed, or is no socket.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there and is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_socket_has_its_mode_and_replaces_a_stale_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugins/x/csi.sock");
        private_directory_of(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        for (audience, expected) in [(Audience::Owner, 0o600), (Audience::Everyone, 0o666)] {
            // The one of the round before is left behind: dropping a listener removes nothing.
            drop(listen(&path, audience).unwrap());
            assert_eq!(mode(&path), expected);
        }
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = listen(&path, Audience::Owner).unwrap_err();
        assert!(
            crate::error::sentence(&error).ends_with("csi.sock: it is there and is not a socket"),
            "{error:?}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
