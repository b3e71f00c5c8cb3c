//! The control group below which a cluster's kubelet keeps those of its pods.
//!
//! Each cluster has one of its own: control groups are the machine's, not a namespace's, and a kubelet ends whatever it
//! finds below its own and does not know. Nobody removes it when a node's end, or a machine's, leaves it behind.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// Where control groups are seen.
const ROOT: &str = "/sys/fs/cgroup";

/// Name of the control group of the cluster that has this directory.
pub fn name(directory: &Path) -> Result<String> {
    let own = directory.file_name().and_then(OsStr::to_str).context("the directory has a name")?;
    Ok(format!("countersign-{own}"))
}

/// Makes it, in every hierarchy.
pub fn create(directory: &Path) -> Result<()> {
    for path in everywhere(directory)? {
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        // Version 1: nothing may run in a new group before it says where.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (own, above) = (path.join(file), Path::new(ROOT).join("cpuset").join(file));
            if own.exists() && above.exists() {
                fs::write(&own, fs::read(above)?).with_context(|| own.display().to_string())?;
            }
        }
    }
    Ok(())
}

/// Removes it from every hierarchy with all that is in it. Groups are empty once the last process has been waited for,
/// which the kernel does in its own time.
pub fn remove(directory: &Path) {
    let paths = everywhere(directory).unwrap_or_default();
    for _ in 0..100 {
        for path in &paths {
            remove_beneath(path);
        }
        if !paths.iter().any(|path| path.exists()) {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn remove_beneath(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_beneath(&entry.path());
        }
    }
    // Busy for a moment yet: tried again.
    fs::remove_dir(path).ok();
}

/// Its path in each hierarchy: of version 1 there are many, of version 2 one.
fn everywhere(directory: &Path) -> Result<Vec<PathBuf>> {
    let (root, name) = (Path::new(ROOT), name(directory)?);
    let below = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let hierarchies: Vec<PathBuf> = if root.join("cgroup.procs").exists() {
        vec![root.to_owned()]
    } else {
        below.filter(|path| path.join("cgroup.procs").exists()).collect()
    };
    Ok(hierarchies.into_iter().map(|path| path.join(&name)).collect())
}
