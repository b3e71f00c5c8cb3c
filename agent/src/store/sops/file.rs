//! Files: opened beneath a directory and never above it, read whole or not at all.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use zeroize::Zeroizing;

/// A larger file is no file of secrets.
pub(super) const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Seconds after which a timestamp tells every later change: the kernel's may be coarser than a change and a read.
const SETTLED_AFTER: i64 = 2;
/// How often a file that changes while it is read is read again.
const ATTEMPTS: usize = 3;
/// Names looked at when telling what is there instead.
const MAX_LISTED: usize = 1000;

/// What tells that a file is the same and unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a change after `now` (seconds since 1970) cannot leave the stamp as it is.
    pub(super) fn is_settled(&self, now: i64) -> bool {
        self.changed.0.saturating_add(SETTLED_AFTER) < now
    }
}

/// Why a file could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Missing,
    /// A symlink or `..` leads out of the directory, or in circles.
    Escapes,
    NotAFile,
    NotReadable,
    TooLarge,
    /// Written to at each attempt to read it.
    Unsteady,
    /// Anything that may be better next time.
    System(Errno),
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::Missing,
            Errno::XDEV | Errno::LOOP => Self::Escapes,
            Errno::ACCESS | Errno::PERM => Self::NotReadable,
            Errno::ISDIR | Errno::NXIO => Self::NotAFile,
            other => Self::System(other),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Errno::from_io_error(&error).unwrap_or(Errno::IO).into()
    }
}

impl Trouble {
    /// The rest of a sentence that begins with the file's name.
    pub(super) fn problem(self) -> String {
        match self {
            Self::Missing => "does not exist".into(),
            Self::Escapes => {
                "leads out of the store's directory by a symlink; files must be inside it".into()
            }
            Self::NotAFile => "is no regular file".into(),
            Self::NotReadable => {
                format!(
                    "cannot be read by uid {}; change its owner, group or mode",
                    rustix::process::geteuid().as_raw()
                )
            }
            Self::TooLarge => format!("is larger than {MAX_FILE_BYTES} bytes"),
            Self::Unsteady => {
                "changes while it is being read; write a new file beside it and rename that over it".into()
            }
            Self::System(errno) => format!("cannot be read: {errno}"),
        }
    }
}

/// A directory by its path, opened anew at each use: whoever swaps a symlink in it is followed.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Opens what is at `relative`. Symlinks are followed as long as they stay inside: kubelet's mounts of `ConfigMaps`
    /// and `Secrets` are made of them.
    pub(super) fn open(&self, relative: &str) -> Result<File, Trouble> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.open_with(relative, flags)
    }

    /// Whether the directory is there.
    pub(super) fn check(&self) -> Result<(), Trouble> {
        self.root().map(drop)
    }

    fn root(&self) -> Result<rustix::fd::OwnedFd, Trouble> {
        Ok(openat(CWD, &self.0, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn open_with(&self, relative: &str, flags: OFlags) -> Result<File, Trouble> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let root = self.root()?;
        loop {
            match openat2(&root, relative, flags, Mode::empty(), resolve) {
                // A rename raced with the look-up of a `..`.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return Ok(result?.into()),
            }
        }
    }

    /// Names in the directory at `relative` (empty: the top), unsorted, at most a thousand.
    pub(super) fn names(&self, relative: &str) -> Vec<String> {
        let relative = if relative.is_empty() { "." } else { relative };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) = self.open_with(relative, flags) else { return Vec::new() };
        let Ok(entries) = Dir::read_from(&directory) else { return Vec::new() };
        entries
            .take(MAX_LISTED)
            .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned))
            .filter(|name| !name.starts_with('.'))
            .collect()
    }
}

/// What a file says of itself, if it is one that can be read.
pub(super) fn look(file: &File) -> Result<Metadata, Trouble> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Trouble::NotAFile);
    }
    if metadata.size() > MAX_FILE_BYTES {
        return Err(Trouble::TooLarge);
    }
    Ok(metadata)
}

/// The whole content, and the stamp that it had before and after.
pub(super) fn read(file: &mut File) -> Result<(Zeroizing<Vec<u8>>, Stamp), Trouble> {
    for _ in 0..ATTEMPTS {
        io::Seek::rewind(file)?;
        let before = look(file)?;
        let size = usize::try_from(before.size()).map_err(|_| Trouble::TooLarge)?;
        // One byte more than there is, so that the buffer need not grow to see the end.
        let mut content = Zeroizing::new(Vec::with_capacity(size + 1));
        file.take(before.size() + 1).read_to_end(&mut content)?;
        let stamp = Stamp::of(&before);
        if content.len() == size && Stamp::of(&look(file)?) == stamp {
            return Ok((content, stamp));
        }
    }
    Err(Trouble::Unsteady)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn beneath_and_never_above() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("store");
        std::fs::create_dir_all(inner.join("a/b")).unwrap();
        std::fs::write(outer.path().join("outside"), "x").unwrap();
        std::fs::write(inner.join("a/b/inside"), "y").unwrap();
        symlink("../../outside", inner.join("a/up")).unwrap();
        symlink(outer.path().join("outside"), inner.join("absolute")).unwrap();
        symlink("b/inside", inner.join("a/across")).unwrap();
        symlink("self", inner.join("self")).unwrap();
        let directory = Directory::new(inner);
        assert_eq!(read(&mut directory.open("a/across").unwrap()).unwrap().0.as_slice(), b"y");
        for escape in ["a/up", "absolute", "../outside", "a/../../outside", "self"] {
            assert_eq!(directory.open(escape).map(drop), Err(Trouble::Escapes), "{escape}");
        }
        for missing in ["nothing", "a/b/inside/x", "a/nothing"] {
            assert_eq!(directory.open(missing).map(drop), Err(Trouble::Missing), "{missing}");
        }
        assert_eq!(look(&directory.open("a").unwrap()).map(drop), Err(Trouble::NotAFile));
        let mut names = directory.names("a");
        names.sort();
        assert_eq!(names, ["across", "b", "up"]);
        assert!(directory.names("../").is_empty());
    }

    #[test]
    fn a_pipe_does_not_hold_us() {
        let directory = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            CWD,
            directory.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let file = Directory::new(directory.path().into()).open("pipe").unwrap();
        assert_eq!(look(&file).map(drop), Err(Trouble::NotAFile));
    }

    #[test]
    fn the_size_is_limited() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("large");
        let file = File::create(&path).unwrap();
        file.set_len(MAX_FILE_BYTES).unwrap();
        assert!(read(&mut File::open(&path).unwrap()).is_ok());
        file.set_len(MAX_FILE_BYTES + 1).unwrap();
        assert_eq!(read(&mut File::open(&path).unwrap()).map(drop), Err(Trouble::TooLarge));
    }
}
