//! From a target path to open descriptors, and nothing by path after that.
//!
//! The kubelet root is opened once and may be a symlink itself. Below it no symlink is followed (openat2(2)), and
//! no mount is entered but the `pods` directory and, at the very end, the volume.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, mkdirat, openat2, statx, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::Error;
use crate::mount::SOURCE_PREFIX;
use crate::mountinfo;
use crate::volume::{Place, VolumeId};

/// Directory of all pods under the kubelet root.
const PODS: &str = "pods";
/// Name of the mount point in the volume's directory.
const MOUNT: &str = "mount";
/// Mode of the mount point, as kubelet makes its own.
const MODE: Mode = Mode::from_raw_mode(0o750);
/// Mounts that are taken off one target at most before giving up.
const STACKED: u8 = 32;
/// `STATX_MNT_ID_UNIQUE` of Linux 6.8: an id that is never given again.
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Kubelet's directory, opened.
#[derive(Debug)]
pub struct KubeletRoot {
    written: String,
    real: PathBuf,
    directory: OwnedFd,
}

impl KubeletRoot {
    /// Opens the kubelet root, following symlinks.
    ///
    /// # Errors
    /// [`Error::Path`].
    pub fn open(path: &str) -> Result<Self, Error> {
        let failed =
            |source| Error::Path { step: "open the kubelet root", path: PathBuf::from(path), source };
        let real = fs::canonicalize(path).map_err(failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(&real, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(Self { written: path.to_owned(), real, directory })
    }

    /// The root as it was configured: what target paths begin with.
    #[must_use]
    pub fn written(&self) -> &str {
        &self.written
    }

    /// The root without symlinks: what the mount table shows.
    #[must_use]
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// Opens the directory kubelet made for the volume; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::Symlink`], [`Error::NotADirectory`], [`Error::Crossed`] or [`Error::Kernel`].
    pub fn parent(&self, place: &Place) -> Result<Option<Parent>, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        // The pods directory may be a mount of its own: it is one in the driver's container.
        let pods = match openat2(&self.directory, PODS, flags, Mode::empty(), beneath) {
            Ok(pods) => pods,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.refusal(PODS, errno)),
        };
        let below = place.parent();
        match openat2(&pods, &*below, flags, Mode::empty(), beneath | ResolveFlags::NO_XDEV) {
            Ok(directory) => Ok(Some(Parent { directory, shown: format!("{PODS}/{below}/{MOUNT}") })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.refusal(&format!("{PODS}/{below}"), errno)),
        }
    }

    /// Says which component of a path was refused.
    fn refusal(&self, path: &str, errno: Errno) -> Error {
        if errno == Errno::XDEV {
            return Error::Crossed;
        }
        let components = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for component in components.filter_map(|end| path.get(..end)) {
            let Ok(found) = rustix::fs::statat(&self.directory, component, AtFlags::SYMLINK_NOFOLLOW) else {
                break;
            };
            let kind = rustix::fs::FileType::from_raw_mode(found.st_mode);
            if kind == rustix::fs::FileType::Symlink {
                return Error::Symlink { component: component.to_owned() };
            }
            if kind != rustix::fs::FileType::Directory {
                return Error::NotADirectory { component: component.to_owned() };
            }
        }
        Error::Kernel { step: "open the volume's directory", source: errno }
    }
}

/// What lies at the target.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A directory on kubelet's own file system.
    Directory(OwnedFd),
    /// The root of a mount.
    Mount(Mounted),
}

/// The mount at a target.
#[derive(Debug)]
pub struct Mounted {
    /// Its root.
    pub root: OwnedFd,
    /// Its id.
    pub id: MountId,
}

/// A mount's id: the one that is never given again where the kernel has it (Linux 6.8), else the one of the mount
/// table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountId(pub u64);

impl MountId {
    /// The id of the mount that `descriptor` is in.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn of(descriptor: &OwnedFd) -> Result<Self, Error> {
        let found = statx(descriptor, c"", AtFlags::EMPTY_PATH, UNIQUE | StatxFlags::MNT_ID);
        found.map(|found| Self(found.stx_mnt_id)).map_err(Error::kernel("look at the volume's mount"))
    }
}

impl Mounted {
    /// The id that the mount table has for it.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn in_table(&self) -> Result<u64, Error> {
        let found = statx(&self.root, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
            .map_err(Error::kernel("look at target_path"))?;
        Ok(found.stx_mnt_id)
    }

    /// Whose mount this is: the volume that its source names.
    ///
    /// # Errors
    /// [`Error::Foreign`] when it is not one of ours.
    pub fn owner(&self) -> Result<VolumeId, Error> {
        let (fs_type, from) = mountinfo::origin(self.in_table()?)?.unwrap_or_default();
        let volume =
            from.strip_prefix(SOURCE_PREFIX).and_then(VolumeId::parse).filter(|_| fs_type == "tmpfs");
        volume.ok_or(Error::Foreign { fs_type, from })
    }
}

/// The directory kubelet made for one volume, opened.
#[derive(Debug)]
pub struct Parent {
    directory: OwnedFd,
    shown: String,
}

impl Parent {
    /// Looks at the target.
    ///
    /// # Errors
    /// [`Error::Symlink`], [`Error::NotADirectory`] or [`Error::Kernel`].
    pub fn look(&self) -> Result<Found, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let root = match openat2(&self.directory, MOUNT, flags, Mode::empty(), beneath) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::LOOP) => return Err(Error::Symlink { component: self.shown.clone() }),
            Err(Errno::NOTDIR) => return Err(self.not_a_directory()),
            Err(errno) => return Err(Error::Kernel { step: "open target_path", source: errno }),
        };
        let found = statx(&root, c"", AtFlags::EMPTY_PATH, UNIQUE | StatxFlags::MNT_ID)
            .map_err(Error::kernel("look at target_path"))?;
        if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            Ok(Found::Mount(Mounted { root, id: MountId(found.stx_mnt_id) }))
        } else {
            Ok(Found::Directory(root))
        }
    }

    /// A symlink is refused with ENOTDIR when a directory is asked for without following it.
    fn not_a_directory(&self) -> Error {
        let component = self.shown.clone();
        match rustix::fs::statat(&self.directory, MOUNT, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found)
                if rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Symlink =>
            {
                Error::Symlink { component }
            }
            _ => Error::NotADirectory { component },
        }
    }

    /// The target as an open directory with nothing mounted on it; made if it is not there.
    ///
    /// # Errors
    /// As [`Parent::look`]; [`Error::Foreign`] when something has been mounted there meanwhile.
    pub fn make(&self) -> Result<OwnedFd, Error> {
        match mkdirat(&self.directory, MOUNT, MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => {
                return Err(Error::Kernel { step: "make the directory target_path", source: errno });
            }
        }
        match self.look()? {
            Found::Directory(target) => Ok(target),
            Found::Nothing => Err(Error::Kernel { step: "open target_path", source: Errno::NOENT }),
            Found::Mount(mounted) => {
                let volume = mounted.owner()?;
                Err(Error::Foreign { fs_type: "tmpfs".into(), from: format!("{SOURCE_PREFIX}{volume}") })
            }
        }
    }

    /// Removes the target directory when it is there and empty. Never removes anything else.
    ///
    /// # Errors
    /// [`Error::NotADirectory`], [`Error::Symlink`] or [`Error::Kernel`] (ENOTEMPTY: somebody wrote into it).
    pub fn remove(&self) -> Result<(), Error> {
        match unlinkat(&self.directory, MOUNT, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR) => Err(self.not_a_directory()),
            Err(errno) => Err(Error::Kernel { step: "remove the directory target_path", source: errno }),
        }
    }

    /// Takes every mount of ours off the target, the busy ones lazily. `known` is the mount that needs no look into
    /// the table.
    ///
    /// # Errors
    /// [`Error::Foreign`] when a mount that is not ours comes up: it is left alone, and what lies below it too.
    pub fn unmount(&self, known: Option<MountId>) -> Result<(), Error> {
        // The descriptor of the directory above keeps the path from being resolved a second time.
        let path = format!("/proc/self/fd/{}/{MOUNT}", self.directory.as_fd().as_raw_fd());
        for _ in 0..STACKED {
            match self.look()? {
                Found::Nothing | Found::Directory(_) => return Ok(()),
                Found::Mount(mounted) => {
                    if known != Some(mounted.id) {
                        mounted.owner()?;
                    }
                    // An open descriptor in the mount would keep it busy.
                    drop(mounted);
                }
            }
            let unmounted = match unmount(&*path, UnmountFlags::NOFOLLOW) {
                Err(Errno::BUSY) => unmount(&*path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH),
                other => other,
            };
            match unmounted {
                // EINVAL: somebody else unmounted it first; the next look tells.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(Error::Kernel { step: "unmount the volume", source: errno }),
            }
        }
        Err(Error::Kernel { step: "unmount everything at target_path", source: Errno::BUSY })
    }
}
