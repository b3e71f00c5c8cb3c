//! Images without a registry: archives as docker writes them, handed to containerd.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::layout::CONTAINERD_SOCKET;
use crate::tools::{installed, tool};

/// The image that pods of the tests run, and that holds a pod's namespaces: Debian's static busybox.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// Makes the archive of [`BUSYBOX`] at `archive`.
pub fn busybox(archive: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let root = work.path().join("root");
    for directory in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    let program = root.join("bin/busybox");
    fs::copy(installed("busybox")?, &program)?;
    let output = Command::new(&program).arg("--list").output()?;
    for applet in String::from_utf8(output.stdout)?.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
    tar(&root, &work.path().join("layer.tar"), &["."])?;
    let layer = fs::read(work.path().join("layer.tar"))?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        // A sandbox's process waits for ever, and gives way when told to.
        "config": {
            "Env": ["PATH=/bin"],
            "Cmd": ["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 1000 & wait $!; done"],
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(&layer)))]},
    });
    fs::write(work.path().join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": [BUSYBOX], "Layers": ["layer.tar"]}]);
    fs::write(work.path().join("manifest.json"), manifest.to_string())?;
    tar(work.path(), archive, &["manifest.json", "config.json", "layer.tar"])
}

/// Hands an archive to containerd.
pub fn load(archive: &Path) -> Result<()> {
    let output = Command::new(tool("ctr")?)
        .args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io", "images", "import"])
        .arg(archive)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ctr images import {}: {}", archive.display(), said.trim());
    Ok(())
}

/// Gives an image that containerd has another name.
pub fn tag(name: &str, other: &str) -> Result<()> {
    let output = Command::new(tool("ctr")?)
        .args([
            "--address",
            CONTAINERD_SOCKET,
            "--namespace",
            "k8s.io",
            "images",
            "tag",
            "--force",
            name,
            other,
        ])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ctr images tag {name} {other}: {}", said.trim());
    Ok(())
}

fn tar(directory: &Path, archive: &Path, names: &[&str]) -> Result<()> {
    let output = Command::new("tar")
        .args(["--create", "--owner=0", "--group=0", "--numeric-owner", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(directory)
        .args(names)
        .output()
        .context("tar")?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing into a string cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}
