//! Control groups that containers leave behind when nobody stops them in order: a node's end, or a machine's.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::layout::{self, CONTAINERD};

/// Removes the control groups of containers that were not stopped, from every hierarchy. They are empty once the last
/// process has been waited for, which the kernel does in its own time.
pub fn remove(directory: &Path) {
    // Containerd keeps a directory for each container that it has not removed yet, and names its group after it.
    let kept = layout::on_disk(directory, CONTAINERD).join("io.containerd.grpc.v1.cri");
    let containers = ["sandboxes", "containers"].map(|kind| names(&kept.join(kind))).concat();
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = names(root).into_iter().map(|name| root.join(name)).chain([root.to_owned()]);
    let parents: Vec<PathBuf> =
        hierarchies.map(|path| path.join("k8s.io")).filter(|path| path.is_dir()).collect();
    let groups: Vec<PathBuf> =
        parents.iter().flat_map(|parent| containers.iter().map(|name| parent.join(name))).collect();
    for _ in 0..100 {
        for group in &groups {
            // Busy for a moment yet: tried again.
            fs::remove_dir(group).ok();
        }
        if !groups.iter().any(|group| group.exists()) {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    for parent in parents {
        // Another cluster on this machine may have containers in it.
        fs::remove_dir(parent).ok();
    }
}

fn names(directory: &Path) -> Vec<OsString> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}
