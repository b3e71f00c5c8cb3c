//! The mount table, and whether and how this machine lets us add to it.

use std::fmt;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsmount,
    fsopen, move_mount, unmount,
};

/// Names the namespace this process was put into: `root`, `user` or `none`.
const NAMESPACE: &str = "COUNTERSIGN_NAMESPACE";
/// Asks a process that calls [`enter`] to try a mount, to say how it went, and to end.
const PROBE: &str = "COUNTERSIGN_NAMESPACE_PROBE";

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// The directory of the file system that shows there.
    pub root: String,
    /// Options of this mount, such as `ro` and `nosuid`.
    pub options: Vec<String>,
    /// File system type.
    pub kind: String,
    /// What was mounted: free text on a tmpfs.
    pub source: String,
    /// Options of the file system, such as `size=…` and `noswap`.
    pub filesystem: Vec<String>,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?).into();
        let options = list(fields.next()?);
        let mut fields = filesystem.split(' ');
        let kind = unescape(fields.next()?);
        let source = unescape(fields.next()?);
        Some(Self { point, root, options, kind, source, filesystem: list(fields.next()?) })
    }

    /// Whether this mount has the option, or its file system has.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().chain(&self.filesystem).any(|o| o == option)
    }

    /// The value of an option of the file system, such as `size`.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.filesystem.iter().find_map(|o| o.strip_prefix(name)?.strip_prefix('='))
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} on {} type {} ({}; {})",
            self.source,
            self.point.display(),
            self.kind,
            self.options.join(","),
            self.filesystem.join(",")
        )
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' {
            let value =
                bytes.by_ref().take(3).fold(0_u32, |n, digit| n * 8 + u32::from(digit.wrapping_sub(b'0')));
            out.push(u8::try_from(value).unwrap_or(b'?'));
        } else {
            out.push(byte);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The mount table of this process.
pub fn table() -> Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("the mount table")?;
    Ok(text.lines().filter_map(Mount::parse).collect())
}

/// All mounts at or beneath a directory, the innermost first: the order in which they can be unmounted.
pub fn beneath(directory: &Path) -> Result<Vec<Mount>> {
    Ok(table()?.into_iter().rev().filter(|mount| mount.point.starts_with(directory)).collect())
}

/// The mount that shows at this path, if one is mounted exactly there.
pub fn at(point: &Path) -> Result<Option<Mount>> {
    Ok(table()?.into_iter().rev().find(|mount| mount.point == point))
}

/// How this machine lets us mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespace {
    /// As root, in a mount namespace of our own.
    Root,
    /// As the root of a user namespace of our own, where only one uid is mapped.
    User,
    /// Not at all.
    None {
        /// What was tried and what came back.
        reason: String,
    },
}

/// What to tell who runs us where nothing can be mounted.
pub const REMEDY: &str =
    "run as root, or where `unshare -Urm true` works, or in a container started with --privileged";

impl Namespace {
    /// Whether anything can be mounted.
    pub fn mounts(&self) -> bool {
        !matches!(self, Self::None { .. })
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root, in a mount namespace of its own"),
            Self::User => f.write_str("an unprivileged user namespace (unshare -Urm)"),
            Self::None { reason } => write!(f, "no mounts: {reason}"),
        }
    }
}

/// Finds a way to mount and moves this process there, by starting it anew under `unshare`. To be called first in
/// `main`, before anything has an effect.
///
/// Where the environment says that the process was put into a namespace already, that is taken as it is, so a
/// runner such as `unshare -m` can be used in front.
pub fn enter() -> Result<Namespace> {
    if std::env::var_os(PROBE).is_some() {
        match try_mount() {
            Ok(()) => std::process::exit(0),
            Err(error) => {
                // The answer goes to the process that asked.
                drop(std::io::Write::write_all(&mut std::io::stderr(), format!("{error:#}").as_bytes()));
                std::process::exit(1)
            }
        }
    }
    match std::env::var(NAMESPACE).as_deref() {
        Ok("root") => return Ok(Namespace::Root),
        Ok("user") => return Ok(Namespace::User),
        Ok("none") => return Ok(Namespace::None { reason: format!("{NAMESPACE}=none was asked for") }),
        Ok(other) => bail!("{NAMESPACE}={other}: must be root, user or none"),
        Err(_) => {}
    }
    let program = std::env::current_exe()?;
    let mut reasons = Vec::new();
    let root = rustix::process::geteuid().is_root();
    for (name, flags) in [("root", "-m"), ("user", "-Urm")] {
        if name == "root" && !root {
            continue;
        }
        let tried =
            Command::new("unshare").arg(flags).arg(&program).env(PROBE, "1").stdin(Stdio::null()).output();
        match tried {
            Ok(output) if output.status.success() => {
                let arguments = std::env::args_os().skip(1);
                let error = Command::new("unshare")
                    .arg(flags)
                    .arg(&program)
                    .args(arguments)
                    .env(NAMESPACE, name)
                    .exec();
                return Err(error).context("starting anew under unshare");
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                reasons.push(format!("unshare {flags}: {}", said.trim().lines().last().unwrap_or("failed")));
            }
            Err(error) => reasons.push(format!("unshare: {error}")),
        }
    }
    Ok(Namespace::None { reason: reasons.join("; ") })
}

/// Mounts a tmpfs on a directory made for it, by the calls that the driver uses, and takes it away again.
fn try_mount() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let filesystem = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen")?;
    fsconfig_create(&filesystem).context("fsconfig")?;
    let mount =
        fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).context("fsmount")?;
    move_mount(&mount, "", rustix::fs::CWD, directory.path(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context("move_mount")?;
    unmount(directory.path(), UnmountFlags::DETACH).context("umount")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table() {
        let line = r"620 27 0:45 / /k/pods/a\040b/mount ro,nosuid,nodev shared:1 - tmpfs countersign:csi-1 rw,size=64k";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/k/pods/a b/mount"));
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("tmpfs", "countersign:csi-1"));
        assert!(mount.has("ro") && mount.has("rw") && !mount.has("noexec"));
        assert_eq!(mount.value("size"), Some("64k"));
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(at(Path::new("/")).unwrap().is_some());
    }
}
