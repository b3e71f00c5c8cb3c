//! The kernel's mount table: the driver's only database.
//!
//! Format: `proc_pid_mountinfo(5)`.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;

use crate::error::Error;

/// The table as the calling thread sees it.
const TABLE: &str = "/proc/thread-self/mountinfo";

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount<'line> {
    /// The mount's id; the kernel gives it anew once the mount is gone.
    pub id: u64,
    /// Which part of its file system is mounted: the path of that within it.
    pub root: Cow<'line, str>,
    /// Where it is mounted.
    pub point: Cow<'line, str>,
    /// Whether this mount (not its file system) is read-only.
    pub read_only: bool,
    /// Its file system's type.
    pub fs_type: Cow<'line, str>,
    /// Its source; a free text for a tmpfs.
    pub source: Cow<'line, str>,
}

impl<'line> Mount<'line> {
    /// Reads a line; `None` when it is not one of the table's.
    #[must_use]
    pub fn parse(line: &'line str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        // Parent and device come before it.
        let (root, point) = (fields.nth(2)?, fields.next()?);
        let read_only = fields.next()?.split(',').any(|option| option == "ro");
        // Any number of optional fields ends with a dash.
        fields.find(|field| *field == "-")?;
        let (fs_type, source) = (fields.next()?, fields.next()?);
        Some(Self {
            id,
            root: unescape(root),
            point: unescape(point),
            read_only,
            fs_type: unescape(fs_type),
            source: unescape(source),
        })
    }
}

/// The table writes space, tab, newline and backslash as three octal digits after a backslash.
fn unescape(field: &str) -> Cow<'_, str> {
    if !field.contains('\\') {
        return Cow::Borrowed(field);
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        if let (b'\\', Some(code)) = (first, code) {
            bytes.push(code);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// Calls `visit` with each mount of the table until it answers `false`. One line is held at a time: with a
/// thousand volumes the table is a quarter of a megabyte.
///
/// # Errors
/// [`Error::Path`] when the table can't be read.
pub fn each(mut visit: impl FnMut(Mount<'_>) -> bool) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Path { step: "read", path: PathBuf::from(TABLE), source };
    let mut table = BufReader::new(File::open(TABLE).map_err(failed)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if table.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line));
        if let Some(mount) = Mount::parse(&text)
            && !visit(mount)
        {
            return Ok(());
        }
    }
}

/// Type and source of the mount with this id, if there is one.
///
/// # Errors
/// [`Error::Path`] when the table can't be read.
pub fn origin(id: u64) -> Result<Option<(String, String)>, Error> {
    let mut found = None;
    each(|mount| {
        if mount.id == id {
            found = Some((mount.fs_type.into_owned(), mount.source.into_owned()));
        }
        found.is_none()
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read() {
        let line = "612 30 0:71 /x /var/lib/kubelet/pods/u/m ro,nosuid,nodev,noexec,relatime shared:9 master:2 - tmpfs \
                    countersign:csi-00 rw,size=4096k,mode=755";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.id, mount.read_only), (612, true));
        assert_eq!((&*mount.root, &*mount.point), ("/x", "/var/lib/kubelet/pods/u/m"));
        assert_eq!((&*mount.fs_type, &*mount.source), ("tmpfs", "countersign:csi-00"));
    }

    #[test]
    fn read_only_is_the_mount_s_own_flag() {
        let mount = Mount::parse("1 2 0:1 / /x rw,relatime - tmpfs t ro").unwrap();
        assert!(!mount.read_only);
    }

    #[test]
    fn escapes_are_undone() {
        let mount = Mount::parse(r"1 2 0:1 / /a\040b\134c rw - fuse.x a\040b rw").unwrap();
        assert_eq!((&*mount.point, &*mount.source), (r"/a b\c", "a b"));
        assert_eq!(unescape(r"end\04"), r"end\04");
    }

    #[test]
    fn what_is_no_line_is_none() {
        for line in ["", "x", "1 2 0:1 / /x rw", "1 2 0:1 / /x rw shared:1", "a 2 0:1 / /x rw - t s o"] {
            assert_eq!(Mount::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn the_table_of_this_process_is_read() {
        let mut ids = Vec::new();
        each(|mount| {
            ids.push(mount.id);
            true
        })
        .unwrap();
        assert!(!ids.is_empty());
        assert!(origin(ids[0]).unwrap().is_some());
        assert_eq!(origin(u64::MAX).unwrap(), None);
    }
}
