//! Where things are on the node, and which addresses it has.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

use crate::tools::installed;

/// The node's name.
pub const NODE: &str = "node-1";
/// The node's address.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The cluster address of the Service `kubernetes`. The node has it, and the API server listens there: there are no
/// rules of a packet filter between a pod and the API server, and no kube-proxy that makes them.
pub const API_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Where the cluster's names are resolved.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The addresses of Services.
pub const SERVICES: &str = "10.96.0.0/16";
/// The addresses of pods.
pub const PODS: &str = "10.244.0.0/16";
/// Kubelet's root directory unless it is told another.
pub const KUBELET: &str = "/var/lib/kubelet";
/// Another one, as some distributions have.
pub const KUBELET_ELSEWHERE: &str = "/var/lib/other/kubelet";
/// Containerd's directory.
pub const CONTAINERD: &str = "/var/lib/containerd";
/// Containerd's socket.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// What kubelet would set for the whole machine, and to what. See [`shield`].
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Makes this mount and network namespace into a node: usual paths, that lead into `directory`, and addresses. Kubelet's
/// root directory it makes itself.
pub fn prepare(directory: &Path) -> Result<()> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    for (point, names) in
        [("/var/lib", &["containerd", "cni", "etcd", "misc"][..]), ("/var/log", &["pods", "containers"][..])]
    {
        let own = on_disk(directory, point);
        for name in names {
            fs::create_dir_all(own.join(name))?;
        }
        mount_bind(&own, point).with_context(|| point.to_owned())?;
    }
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755,size=64m")
        .context("/run")?;
    shield(directory)?;
    // As on every node: what a pod mounts is seen by kubelet and by other pods.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED)?;
    network()
}

/// Where a directory of `/var/lib` or `/var/log` inside lies outside.
pub fn on_disk(directory: &Path, path: &str) -> PathBuf {
    let relative = path.trim_start_matches('/');
    let (first, rest) = match relative.match_indices('/').nth(1) {
        Some((at, _)) => (relative.get(..at).unwrap_or(relative), relative.get(at + 1..).unwrap_or_default()),
        None => (relative, ""),
    };
    directory.join(first.replace('/', "-")).join(rest)
}

/// Kubelet sets what happens when the kernel fails or memory ends, for the whole machine and for good. Here it finds
/// the values it wants in files that lie over the kernel's own.
fn shield(directory: &Path) -> Result<()> {
    let files = directory.join("tunables");
    for (name, value) in TUNABLES {
        let file = files.join(name);
        fs::create_dir_all(file.parent().context("a file lies in a directory")?)?;
        fs::write(&file, format!("{value}\n"))?;
        let point = Path::new("/proc/sys").join(name);
        if point.exists() {
            mount_bind(&file, &point).with_context(|| point.display().to_string())?;
        }
    }
    // A user namespace may mount its own /proc only where there is one that nothing lies over.
    let whole = directory.join("proc");
    fs::create_dir_all(&whole)?;
    mount("proc", &whole, "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
        .context("a second /proc")
}

fn network() -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    for address in [NODE_ADDRESS, API_ADDRESS, DNS_ADDRESS] {
        ip(&["address", "add", &format!("{address}/32"), "dev", "lo"])?;
    }
    // What kubelet and the API server look for to find out who they are. Nothing answers there.
    ip(&["route", "add", "default", "dev", "lo"])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new(installed("ip")?).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Where a run keeps what is neither kubelet's nor containerd's.
#[derive(Debug, Clone)]
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// Beneath a directory.
    pub fn new(directory: &Path) -> Result<Self> {
        for name in ["log", "pki", "etc"] {
            fs::create_dir_all(directory.join(name))?;
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// All of it.
    pub fn root(&self) -> &Path {
        &self.directory
    }

    /// The log of a part.
    pub fn log(&self, part: &str) -> PathBuf {
        self.directory.join("log").join(format!("{part}.log"))
    }

    /// Directory of all logs.
    pub fn logs(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// A key or certificate.
    pub fn pki(&self, name: &str) -> PathBuf {
        self.directory.join("pki").join(name)
    }

    /// A configuration file.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.directory.join("etc").join(name)
    }

    /// Writes a configuration file.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.etc(name);
        fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_inside_lies_in_the_directory_of_the_run() {
        let run = Path::new("/tmp/run");
        assert_eq!(on_disk(run, "/var/lib"), Path::new("/tmp/run/var-lib"));
        assert_eq!(on_disk(run, "/var/lib/containerd/x"), Path::new("/tmp/run/var-lib/containerd/x"));
    }
}
