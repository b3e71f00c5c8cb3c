//! Images without a registry: archives as docker writes them, handed to containerd.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::layout::CONTAINERD_SOCKET;
use crate::pods::IDLE;
use crate::tools::{installed, tool};

/// The image that pods of the tests run, and that holds a pod's namespaces: Debian's static busybox.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// An image: Debian's static busybox, and programs of this machine with the libraries that they are linked to.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// Its name, with a tag.
    pub name: &'a str,
    /// Where programs lie on this machine, and in the image.
    pub programs: &'a [(&'a Path, &'a str)],
    /// Other files, and what is in them.
    pub files: &'a [(&'a str, &'a str)],
    /// What a container starts that says nothing else.
    pub entrypoint: &'a [&'a str],
}

/// Makes the archive of [`BUSYBOX`] at `archive`.
pub fn busybox(archive: &Path) -> Result<()> {
    // A sandbox's process waits for ever, and gives way when told to.
    make(archive, &Image { name: BUSYBOX, programs: &[], files: &[], entrypoint: &IDLE })
}

/// Makes the archive of an image at `archive`.
pub fn make(archive: &Path, image: &Image<'_>) -> Result<()> {
    let work = tempfile::tempdir()?;
    let root = work.path().join("root");
    for directory in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    // As everywhere: whoever runs in there writes to it.
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let program = root.join("bin/busybox");
    fs::copy(installed("busybox")?, &program)?;
    let output = Command::new(&program).arg("--list").output()?;
    for applet in String::from_utf8(output.stdout)?.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
    for (from, to) in image.programs {
        put(&root, from, Path::new(to))?;
        for library in libraries(from)? {
            put(&root, &library, &library)?;
        }
    }
    for (path, text) in image.files {
        let path = within(&root, Path::new(path))?;
        fs::write(path, text)?;
    }
    tar(&root, &work.path().join("layer.tar"), &["."])?;
    let layer = fs::read(work.path().join("layer.tar"))?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Entrypoint": image.entrypoint},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(&layer)))]},
    });
    fs::write(work.path().join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": [image.name], "Layers": ["layer.tar"]}]);
    fs::write(work.path().join("manifest.json"), manifest.to_string())?;
    tar(work.path(), archive, &["manifest.json", "config.json", "layer.tar"])
}

/// A path in an image, whose directory is made.
fn within(root: &Path, path: &Path) -> Result<PathBuf> {
    let path = root.join(path.strip_prefix("/").unwrap_or(path));
    fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
    Ok(path)
}

fn put(root: &Path, from: &Path, to: &Path) -> Result<()> {
    let to = within(root, to)?;
    // Over a link it would go into what the link names.
    if fs::symlink_metadata(&to).is_ok() {
        fs::remove_file(&to)?;
    }
    fs::copy(from, &to).with_context(|| from.display().to_string())?;
    Ok(())
}

/// What a program is linked to, as this machine finds it; nothing for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    Ok(linked(&String::from_utf8(output.stdout)?))
}

/// The files in what `ldd` says.
fn linked(said: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let (before, _) = line.rsplit_once(" (0x")?;
        let path = before.rsplit_once("=> ").map_or(before, |(_, path)| path).trim();
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    said.lines().filter_map(path).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_libraries_are_files() {
        let said = "\tlinux-vdso.so.1 (0x00007f9b)\n\tlibssl.so.3 => /lib/x86_64-linux-gnu/libssl.so.3 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f9b)\n";
        let expected = ["/lib/x86_64-linux-gnu/libssl.so.3", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(linked(said), expected.map(PathBuf::from));
        assert!(linked("\tstatically linked\n").is_empty());
    }
}
