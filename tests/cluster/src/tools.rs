//! The foreign programs a cluster is made of.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use countersign_tests::processes::workspace;

/// What `tests/tools/build.sh` builds for a cluster.
const BUILT: [&str; 9] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubectl",
    "containerd",
    "ctr",
    "runc",
    "helm",
];

/// What is a package of Debian, and which.
const INSTALLED: [(&str, &str); 5] = [
    ("etcd", "etcd-server"),
    ("dnsmasq", "dnsmasq-base"),
    ("ip", "iproute2"),
    ("busybox", "busybox-static"),
    ("iptables", "iptables"),
];

/// Where Debian's `containernetworking-plugins` lie.
pub const CNI: &str = "/usr/lib/cni";

/// Builds what is not built yet, and sees that the rest is installed.
pub fn build_all() -> Result<()> {
    for (name, package) in INSTALLED {
        installed(name).with_context(|| format!("{name} is missing: apt-get install {package}"))?;
    }
    ensure!(
        Path::new(CNI).join("ptp").exists(),
        "{CNI}/ptp is missing: apt-get install containernetworking-plugins"
    );
    built(&BUILT).map(drop)
}

/// The path of a program that was built.
pub fn tool(name: &str) -> Result<PathBuf> {
    built(&[name])?.pop().with_context(|| format!("tests/tools/build.sh printed no path of {name}"))
}

/// The path of a program that is installed.
pub fn installed(name: &str) -> Result<PathBuf> {
    let directories = std::env::var_os("PATH").context("PATH")?;
    let also = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    let found = std::env::split_paths(&directories).chain(also).map(|directory| directory.join(name));
    found.into_iter().find(|path| path.is_file()).with_context(|| format!("no {name} on the PATH"))
}

fn built(names: &[&str]) -> Result<Vec<PathBuf>> {
    let output = Command::new(workspace().join("tests/tools/build.sh"))
        .args(names)
        .stderr(Stdio::inherit())
        .output()
        .context("tests/tools/build.sh")?;
    if !output.status.success() {
        bail!("tests/tools/build.sh {}: {}", names.join(" "), output.status);
    }
    Ok(String::from_utf8(output.stdout)?.lines().map(PathBuf::from).collect())
}
