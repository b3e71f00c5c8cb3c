//! Whether kubelet's root directory is where this driver was told it is.
//!
//! At a wrong place nobody ever comes: kubelet looks for sockets below its own root. What tells is the driver's own pod:
//! kubelet has made a directory for it before this process was started, below the root that it really has.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::Error;
use crate::mountinfo;

/// Says whether kubelet has this process's own pod below the configured root. Outside of a pod nothing can be said, and
/// nothing is.
///
/// # Errors
/// [`Error::Elsewhere`]; [`Error::Path`] when the mount table can't be read.
pub fn check(config: &Config) -> Result<(), Error> {
    let Some(uid) = &config.pod_uid else { return Ok(()) };
    if Path::new(&config.kubelet_root).join("pods").join(uid).is_dir() {
        return Ok(());
    }
    Err(Error::Elsewhere { told: config.kubelet_root.clone(), found: root_of(uid)? })
}

/// The root as its file system shows it: kubelet has mounted files of the pod's own directory into the container, its
/// `/etc/hosts` for one.
fn root_of(uid: &str) -> Result<Option<PathBuf>, Error> {
    let own = format!("/pods/{uid}/");
    let mut found = None;
    mountinfo::each(|mount| {
        found = mount.root.split_once(&own).map(|(root, _)| PathBuf::from(root));
        found.is_none()
    })?;
    Ok(found)
}
