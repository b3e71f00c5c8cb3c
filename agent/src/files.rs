//! Files in a volume, changed together.
//!
//! The volume looks as kubelet's own volumes do, so that programs which watch those work here:
//!
//! ```text
//! ..2026_03_01_10_20_30.5f3a9c01/   a generation: every file of one moment
//! ..data -> ..2026_03_01_10_20_30.5f3a9c01
//! password -> ..data/password       one visible link for each first part of a file's name
//! ```
//!
//! One rename of `..data` changes all files at once, and a reader that opens `..data` as a directory sees one
//! generation whole. The order around that rename keeps a promise about the visible names: **one that is there
//! opens.** A name that goes is removed before the rename, a name that comes is put in place after it; a name that
//! stays is never touched. (The links that come are made before, aside, and only renamed into place after, so that
//! a full volume is found out while nothing has changed.)
//!
//! A generation that was replaced stays for a grace time, for readers that have resolved `..data` and not opened
//! their file yet; it goes earlier only if the volume has no room for the next one.
//!
//! Everything is done beneath one descriptor; no path of the host is known, and no symbolic link is followed.

mod digest;
mod generation;
mod set;
mod sweep;
mod tree;

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use tokio::time::Instant;

use crate::Error;
use crate::clock::Clock;
use crate::request::FilePath;
use crate::secret::Secret;
use digest::Digest;
pub use set::{FileSet, default_mode};

/// How long a replaced generation stays readable.
pub const GRACE: Duration = Duration::from_secs(5);

/// The link that names the generation in use.
const DATA: &str = "..data";
/// The link that becomes [`DATA`].
const DATA_NEXT: &str = "..data_tmp";
/// The directory in which visible links wait for the rename of [`DATA`].
const LINKS_NEXT: &str = "..links_tmp";

/// What [`Directory::replace`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The files are the same already: nothing was written.
    Unchanged,
    /// A new generation is in use.
    Replaced {
        /// Files in it.
        files: usize,
        /// Bytes in them.
        bytes: u64,
    },
}

/// The root of one volume, and what is known to be in it.
///
/// The one writer: two of these for one volume would remove each other's work.
#[derive(Debug)]
pub struct Directory {
    root: OwnedFd,
    capacity: u64,
    current: Option<Generation>,
    /// Generations no longer in use, and when they may go; the oldest first.
    superseded: Vec<(String, Instant)>,
}

/// The generation in use.
#[derive(Debug)]
struct Generation {
    name: String,
    /// The visible names.
    names: BTreeSet<String>,
    /// Of its files; none after a restart, until they have been compared.
    digest: Option<Digest>,
}

/// Names the operation of a failure.
trait During<T> {
    fn during(self, operation: &'static str) -> Result<T, Error>;
}

impl<T> During<T> for Result<T, Errno> {
    fn during(self, operation: &'static str) -> Result<T, Error> {
        self.map_err(|kind| Error::Directory { operation, kind })
    }
}

/// Goes on whatever came of it: for cleaning up, when the error that matters is another one, or there is nobody
/// left to be told.
fn regardless(_: Result<(), Errno>) {}

impl Directory {
    /// Takes the root of a volume that may hold `capacity` bytes of files, and puts right what a crash left in it.
    ///
    /// `root` may be `O_PATH`, as descriptors from `fsmount` and `open_tree` are. Generations that are not in use
    /// get the grace time from `now` on, for a reader may have resolved one just before the crash.
    pub fn open(root: &OwnedFd, capacity: u64, now: Instant) -> Result<Self, Error> {
        let root = fs::openat(root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .during("opening the root")?;
        let mut directory = Self { root, capacity, current: None, superseded: Vec::new() };
        directory.sweep(now)?;
        Ok(directory)
    }

    /// The same directory, as if it had come just now.
    pub(crate) fn reopen(self, now: Instant) -> Result<Self, Error> {
        Self::open(&self.root, self.capacity, now)
    }

    /// Makes the volume hold `set`, and nothing else.
    ///
    /// # Errors
    /// [`Error::TooLarge`], or [`Error::Directory`] with the operation that failed. The files are as they were
    /// before; a next try starts from there.
    pub fn replace(&mut self, set: &FileSet, clock: &Clock) -> Result<Change, Error> {
        let needed = set.bytes();
        if needed > self.capacity {
            return Err(Error::TooLarge { needed, capacity: self.capacity });
        }
        let digest = Digest::of(set);
        if let Some(current) = &mut self.current {
            match current.digest {
                Some(known) if known == digest => return Ok(Change::Unchanged),
                None if tree::holds(&self.root, &current.name, set) => {
                    current.digest = Some(digest);
                    return Ok(Change::Unchanged);
                }
                Some(_) | None => {}
            }
        }
        match self.publish(set, digest, clock) {
            Err(Error::Directory { kind: Errno::NOSPC | Errno::MFILE | Errno::NFILE, .. })
                if self.retire_all() > 0 =>
            {
                self.publish(set, digest, clock)?;
            }
            done => done?,
        }
        Ok(Change::Replaced { files: set.len(), bytes: needed })
    }

    /// Paths of files that [`Self::replace`] with `set` would change: those that come, go, or have other contents or modes.
    pub(crate) fn differing(&self, set: &FileSet) -> BTreeSet<String> {
        self.current
            .as_ref()
            .map(|current| tree::differing(&self.root, &current.name, set))
            .unwrap_or_default()
    }

    /// What a file holds; none where there is no such file.
    ///
    /// # Errors
    /// [`Error::Directory`] where that can't be told.
    pub(crate) fn held(&self, path: &FilePath) -> Result<Option<Secret>, Error> {
        let Some(current) = &self.current else { return Ok(None) };
        match tree::read(&self.root, &current.name, path.as_str()) {
            Ok(content) => Ok(Some(content)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(kind) => Err(kind).during("reading a file that stays"),
        }
    }

    /// Removes generations whose grace has passed by `now`; returns when to come again, if there are more.
    pub fn retire(&mut self, now: Instant) -> Option<Instant> {
        let root = &self.root;
        self.superseded.retain_mut(|(name, due)| {
            if *due > now {
                return true;
            }
            // What cannot be removed now (no descriptor left, say) is tried again after another grace.
            *due = now + GRACE;
            tree::remove(root, name).is_err()
        });
        self.superseded.iter().map(|(_, due)| *due).min()
    }

    /// Removes every superseded generation at once; returns how many went.
    fn retire_all(&mut self) -> usize {
        let (root, before) = (&self.root, self.superseded.len());
        self.superseded.retain(|(name, _)| tree::remove(root, name).is_err());
        before - self.superseded.len()
    }

    /// Overwrites and removes all files, for a volume whose pod is gone. Whatever cannot be removed goes with the
    /// tmpfs.
    pub fn wipe(self) {
        tree::overwrite(&self.root);
        for name in tree::names(&self.root).unwrap_or_default() {
            // Nobody is left to be told, and the driver destroys the file system next.
            regardless(tree::remove(&self.root, &name));
        }
    }

    /// The name of the generation in use.
    pub fn generation(&self) -> Option<&str> {
        self.current.as_ref().map(|current| current.name.as_str())
    }

    /// Writes a generation, and puts it into use.
    fn publish(&mut self, set: &FileSet, digest: Digest, clock: &Clock) -> Result<(), Error> {
        let name = generation::write(&self.root, set, clock.wall())?;
        let names = set.top_level();
        if let Err(error) = self.switch(&name, &names) {
            regardless(tree::remove(&self.root, LINKS_NEXT));
            regardless(fs::unlinkat(&self.root, DATA_NEXT, AtFlags::empty()));
            generation::discard(&self.root, &name, set);
            return Err(error);
        }
        if let Some(old) = self.current.replace(Generation { name, names, digest: Some(digest) }) {
            self.superseded.push((old.name, clock.now() + GRACE));
        }
        Ok(())
    }

    /// Changes the visible names and `..data` in the order that the module describes.
    fn switch(&self, generation: &str, names: &BTreeSet<String>) -> Result<(), Error> {
        let none = BTreeSet::new();
        let before = self.current.as_ref().map_or(&none, |current| &current.names);
        let coming: Vec<&String> = names.difference(before).collect();
        let going: Vec<&String> = before.difference(names).collect();

        // From here to the swap everything can be taken back.
        let staged = self.stage(&coming)?;
        match fs::unlinkat(&self.root, DATA_NEXT, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(kind) => return Err(kind).during("removing an old ..data_tmp"),
        }
        fs::symlinkat(generation, &self.root, DATA_NEXT).during("linking ..data_tmp")?;
        let swapped = going
            .iter()
            .try_for_each(|name| fs::unlinkat(&self.root, name.as_str(), AtFlags::empty()))
            .during("removing a visible link")
            .and_then(|()| {
                fs::renameat(&self.root, DATA_NEXT, &self.root, DATA).during("renaming ..data_tmp to ..data")
            });
        if let Err(error) = swapped {
            for name in going {
                // There already, if its removal was what failed.
                regardless(link(&self.root, name));
            }
            return Err(error);
        }

        // The new files are in use; nothing is taken back any more. A link that does not come into place now is put
        // there by the next sweep.
        if let Some(staged) = staged {
            for name in coming {
                if let Err(kind) = fs::renameat(&staged, name.as_str(), &self.root, name.as_str()) {
                    tracing::warn!(%name, %kind, "visible link not put in place");
                }
            }
            regardless(fs::unlinkat(&self.root, LINKS_NEXT, AtFlags::REMOVEDIR));
        }
        Ok(())
    }

    /// Makes the visible links that come, aside; none if there are none.
    fn stage(&self, coming: &[&String]) -> Result<Option<OwnedFd>, Error> {
        if coming.is_empty() {
            return Ok(None);
        }
        regardless(tree::remove(&self.root, LINKS_NEXT));
        fs::mkdirat(&self.root, LINKS_NEXT, Mode::RWXU).during("making ..links_tmp")?;
        let staged = tree::directory(&self.root, LINKS_NEXT).during("opening ..links_tmp")?;
        coming.iter().try_for_each(|name| link(&staged, name)).during("making a visible link")?;
        Ok(Some(staged))
    }
}

/// Makes the visible link `name` in `directory`.
fn link(directory: &OwnedFd, name: &str) -> Result<(), Errno> {
    fs::symlinkat(format!("{DATA}/{name}"), directory, name)
}

#[cfg(test)]
mod tests;
