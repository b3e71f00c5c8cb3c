//! The floor of a publish: the same files in a tmpfs by the bare calls, without a process, a socket or a check.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use tokio::time::Instant;

use crate::reader::Generation;

/// Mounts a tmpfs with these files at a directory, and takes it away again. Answers what the first took.
pub(super) fn mount(target: &Path, files: &Generation) -> Result<Duration> {
    let began = Instant::now();
    attach(target, files)?;
    let took = began.elapsed();
    unmount(target, UnmountFlags::empty()).context("umount of the bare mount")?;
    Ok(took)
}

fn attach(target: &Path, files: &Generation) -> Result<()> {
    let filesystem = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen")?;
    for (key, value) in [("source", "bare"), ("size", "8m"), ("mode", "0755")] {
        fsconfig_set_string(&filesystem, key, value).context("fsconfig")?;
    }
    fsconfig_create(&filesystem).context("fsconfig")?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, flags).context("fsmount")?;
    for (name, bytes) in files {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&root, name.as_str(), flags, Mode::from_raw_mode(0o444)).context("openat")?;
        File::from(file).write_all(bytes)?;
    }
    move_mount(&root, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context("move_mount")
}
