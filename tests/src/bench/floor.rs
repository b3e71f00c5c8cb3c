//! The least that any driver could do: a tmpfs, the same files in it, and a mount.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags, openat, renameat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use tokio::time::Instant;

use super::figures::Times;
use crate::reader::Generation;

/// Mounts, fills and unmounts as often as asked; times all but the unmount.
pub(super) fn mounts(directory: &Path, files: &Generation, tries: usize) -> Result<Times> {
    let mut times = Times::default();
    for index in 0..tries {
        let target = directory.join(format!("floor-{index}"));
        let began = Instant::now();
        mount(&target, files)?;
        times.push(began.elapsed());
        unmount(&target, UnmountFlags::empty())?;
        fs::remove_dir(&target)?;
    }
    Ok(times)
}

fn mount(target: &Path, files: &Generation) -> Result<()> {
    fs::create_dir(target)?;
    let filesystem = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("source", "floor"), ("size", "8M"), ("nr_inodes", "1024"), ("mode", "0755")] {
        fsconfig_set_string(&filesystem, key, value)?;
    }
    fsconfig_create(&filesystem)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let root = fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::mkdirat(&root, "..1", mode)?;
    let generation =
        openat(&root, "..1", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    for (name, bytes) in files {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&generation, name.as_str(), flags, Mode::from_raw_mode(0o444))?;
        rustix::io::write(&file, bytes).context("write")?;
        symlinkat(format!("..data/{name}"), &root, name.as_str())?;
    }
    symlinkat("..1", &root, "..data_tmp")?;
    renameat(&root, "..data_tmp", &root, "..data")?;
    move_mount(&root, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}
