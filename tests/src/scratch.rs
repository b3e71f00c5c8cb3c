//! A temporary root for one run: everything a run makes lies beneath it, and goes with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Gid, Uid};

use crate::mount;

/// Keeps what a run made when set to anything: for a look at its logs.
const KEEP: &str = "COUNTERSIGN_KEEP";

/// A temporary directory that other uids can enter but not list.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one. Its path is short: the path of a Unix socket has 107 bytes.
    pub fn new() -> Result<Self> {
        let path = tempfile::Builder::new().prefix("cs-").tempdir().context("a temporary directory")?.keep();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
        // Mount points are reported by their real path.
        Ok(Self { path: path.canonicalize()? })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory with exactly this mode.
    pub fn directory(&self, name: &str, mode: u32) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in mount::beneath(&self.path).unwrap_or_default() {
            rustix::mount::unmount(&mount.point, rustix::mount::UnmountFlags::DETACH).ok();
        }
        if std::env::var_os(KEEP).is_none() {
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

/// Gives `path` to `uid`, where this process may; as its own already is no change.
pub fn give_to(path: &Path, uid: u32) -> Result<()> {
    if rustix::process::geteuid().as_raw() != uid {
        rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))
            .with_context(|| format!("giving {} to uid {uid}", path.display()))?;
    }
    Ok(())
}

/// Writes a file with exactly this mode, replacing it in one step: who reads meanwhile sees the old or the new.
pub fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let directory = path.parent().context("a file lies in a directory")?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.persist(path)?;
    Ok(())
}
