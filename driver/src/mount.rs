//! Making, cloning and attaching the tmpfs of a volume, on descriptors alone.
//!
//! The calls are those of fsopen(2), fsmount(2), `open_tree(2)`, `mount_setattr(2)` and `move_mount(2)`.

use std::fmt::{self, Display, Formatter};
use std::os::fd::{AsFd, OwnedFd};

use lisy::mount::{Mount, MountAttr, MountSetAttr, OpenTree};
use rustix::fs::{AtFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::Error;
use crate::volume::VolumeId;

/// What the source of each of our mounts begins with in the mount table; the volume id follows.
pub const SOURCE_PREFIX: &str = "countersign:";

/// Most files and directories of one volume, those of its generations together.
const INODES: &str = "8192";
/// Generations that may lie in a volume at one moment: the one being written, the one in use, the one before.
const GENERATIONS: u64 = 3;
/// Room for rounding each file up to a page, in bytes: 512 files a generation.
const ROUNDING: u64 = GENERATIONS * 512 * 4096;

/// How the read-write clone for the agent is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloning {
    /// From the detached mount, before anything is attached (Linux 6.15 and newer).
    Detached,
    /// From the mount once it is attached.
    Attached,
}

impl Display for Cloning {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Detached => "detached",
            Self::Attached => "attached",
        })
    }
}

/// What the running kernel can do, found by trying once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Whether tmpfs takes `noswap`: Linux 6.4 and newer, outside of user namespaces.
    pub noswap: bool,
    /// How clones are made.
    pub cloning: Cloning,
}

impl Kernel {
    /// Makes a tmpfs that is never attached, and tries on it what volumes need. With `attached` the older way
    /// of cloning is taken without trying.
    ///
    /// # Errors
    /// [`Error::Kernel`] when this process may not mount, or the kernel is older than Linux 5.12.
    pub fn probe(attached: bool) -> Result<Self, Error> {
        let trial = |noswap| detached("countersign:trial", &[("size", "4096"), ("mode", "0700")], noswap);
        let (mount, noswap) = match trial(true) {
            Ok(mount) => (mount, true),
            Err(_) => (
                trial(false).map_err(Error::kernel("mount a tmpfs: the driver has to be privileged"))?,
                false,
            ),
        };
        restrict(&mount, true)
            .map_err(Error::kernel("make a mount read-only: Linux 5.12 or newer is needed"))?;
        let cloning = if attached || clone(&mount).is_err() { Cloning::Attached } else { Cloning::Detached };
        Ok(Self { noswap, cloning })
    }

    /// Makes the tmpfs of a volume: configured, writable and attached nowhere. It is gone with its last
    /// descriptor unless it is attached before.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn tmpfs(self, volume: &Tmpfs) -> Result<OwnedFd, Error> {
        let size = volume.capacity.saturating_mul(GENERATIONS).saturating_add(ROUNDING).to_string();
        let (uid, gid) = (volume.owner.to_string(), volume.group.unwrap_or(volume.owner).to_string());
        // Set-group-id on the root: whatever is made below belongs to the pod's group.
        let mode = if volume.group.is_some() { "2750" } else { "0755" };
        let options =
            [("size", &*size), ("nr_inodes", INODES), ("mode", mode), ("uid", &*uid), ("gid", &*gid)];
        detached(&format!("{SOURCE_PREFIX}{}", volume.id), &options, self.noswap)
            .map_err(Error::kernel("make the volume's tmpfs, owned by --agent-uid and the pod's fsGroup"))
    }
}

/// What the tmpfs of a volume is made from.
#[derive(Clone, Copy, Debug)]
pub struct Tmpfs {
    /// The volume.
    pub id: VolumeId,
    /// Owner of its root: the agent's uid.
    pub owner: u32,
    /// The pod's fsGroup.
    pub group: Option<u32>,
    /// Most bytes of one generation of files.
    pub capacity: u64,
}

fn detached(source: &str, options: &[(&str, &str)], noswap: bool) -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    if noswap {
        fsconfig_set_flag(context.as_fd(), "noswap")?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

fn clone(mount: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(mount, c"", flags)
}

/// Sets or clears read-only on the mount itself, not on its file system: each mount of it has its own.
fn restrict(mount: &OwnedFd, read_only: bool) -> Result<(), Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    // A second descriptor of the same mount, in the type that can change attributes.
    let mount =
        Mount::open_tree_at(mount, c"", OpenTree::CLOEXEC, AtFlags::EMPTY_PATH.bits()).map_err(errno)?;
    let change = MountSetAttr::new();
    let change = if read_only { change.set(MountAttr::RDONLY) } else { change.clear(MountAttr::RDONLY) };
    mount.setattr(&change, 0).map_err(errno)
}

/// Makes the mount read-only. Clones made before stay as they are.
///
/// # Errors
/// [`Error::Kernel`]; EBUSY while somebody has a file of this mount open for writing.
pub fn make_read_only(mount: &OwnedFd) -> Result<(), Error> {
    restrict(mount, true).map_err(Error::kernel("make the volume's mount read-only"))
}

/// Clones the mount: the same files through a detached mount of their own, read-write whatever `mount` is.
///
/// # Errors
/// [`Error::Kernel`].
pub fn writable_clone(mount: &OwnedFd) -> Result<OwnedFd, Error> {
    let copy = clone(mount).map_err(Error::kernel("clone the volume's mount"))?;
    restrict(&copy, false).map_err(Error::kernel("make the clone of the volume's mount writable"))?;
    Ok(copy)
}

/// Attaches a detached mount at an open directory.
///
/// # Errors
/// [`Error::Kernel`].
pub fn attach(mount: &OwnedFd, target: &OwnedFd) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags).map_err(Error::kernel("attach the volume at target_path"))
}

/// Whether the mount is read-only.
///
/// # Errors
/// [`Error::Kernel`].
pub fn is_read_only(mount: &OwnedFd) -> Result<bool, Error> {
    let found = rustix::fs::fstatvfs(mount).map_err(Error::kernel("look at the volume's mount"))?;
    Ok(found.f_flag.contains(StatVfsMountFlags::RDONLY))
}
