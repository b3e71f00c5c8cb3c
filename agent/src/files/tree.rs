//! Walking what lies beneath a directory, without ever following a symbolic link.

use std::collections::BTreeSet;

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::set::File;
use super::{FileSet, regardless};
use crate::request::FilePath;
use crate::secret::Secret;

/// How deep a walk goes: deeper than any file path, and well within a thread's stack and a process's descriptors.
const MAX_DEPTH: usize = 20;

/// Opens the directory `name` in `parent`.
pub(super) fn directory(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

/// The names in `directory`, without `.` and `..`.
pub(super) fn names(directory: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        // All names are written by us, in UTF-8; another cannot be removed by name, and is not ours to explain.
        if let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Removes `name` from `parent`, with everything beneath it. Nothing there is fine.
pub(super) fn remove(parent: &OwnedFd, name: &str) -> Result<(), Errno> {
    remove_within(parent, name, MAX_DEPTH)
}

fn remove_within(parent: &OwnedFd, name: &str, depth: usize) -> Result<(), Errno> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(kind) => return Err(kind),
    }
    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    let inner = directory(parent, name)?;
    for entry in names(&inner)? {
        remove_within(&inner, &entry, depth)?;
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Writes zeros over every file beneath `directory`, as far as that is possible.
pub(super) fn overwrite(directory: &OwnedFd) {
    overwrite_within(directory, MAX_DEPTH);
}

fn overwrite_within(parent: &OwnedFd, depth: usize) {
    let Some(depth) = depth.checked_sub(1) else { return };
    for name in names(parent).unwrap_or_default() {
        let Ok(stat) = fs::statat(parent, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::RegularFile {
            regardless(overwrite_file(parent, &name, stat.st_size));
        } else if kind == FileType::Directory
            && let Ok(inner) = directory(parent, &name)
        {
            overwrite_within(&inner, depth);
        }
    }
}

fn overwrite_file(parent: &OwnedFd, name: &str, size: i64) -> Result<(), Errno> {
    // Its mode lets nobody write, not even its owner; `name` was just seen to be no link.
    fs::chmodat(parent, name, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
    let file = fs::openat(parent, name, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let zeros = [0; 4096];
    let mut left = usize::try_from(size).unwrap_or_default();
    while left > 0 {
        let written = rustix::io::write(&file, zeros.get(..left.min(zeros.len())).unwrap_or(&zeros))?;
        left = left.saturating_sub(written.max(1));
    }
    Ok(())
}

/// Whether the generation `name` holds exactly `set`: names, modes and contents. What cannot be read does not.
pub(super) fn holds(root: &OwnedFd, name: &str, set: &FileSet) -> bool {
    let Ok(generation) = directory(root, name) else { return false };
    let same =
        |(path, file): (&FilePath, &File)| same_file(&generation, path.as_str(), file).unwrap_or_default();
    set.iter().all(same) && count_files(&generation, MAX_DEPTH).is_ok_and(|files| files == set.len())
}

fn same_file(generation: &OwnedFd, path: &str, file: &File) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let there = fs::openat(generation, path, flags, Mode::empty())?;
    let stat = fs::fstat(&there)?;
    let wanted = file.content.expose();
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
        || stat.st_mode & 0o7777 != file.mode
        || u64::try_from(stat.st_size).ok() != Some(wanted.len() as u64)
    {
        return Ok(false);
    }
    let mut buffer = Zeroizing::new([0; 4096]);
    let mut rest = wanted;
    loop {
        match rustix::io::read(&there, buffer.as_mut_slice())? {
            0 => return Ok(rest.is_empty()),
            count => match rest.split_at_checked(count) {
                Some((expected, after)) if buffer.get(..count) == Some(expected) => rest = after,
                _ => return Ok(false),
            },
        }
    }
}

/// The contents of the file `path` in the generation `name`.
pub(super) fn read(root: &OwnedFd, name: &str, path: &str) -> Result<Secret, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::openat(directory(root, name)?, path, flags, Mode::empty())?;
    let stat = fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let mut content = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or_default());
    let mut buffer = Zeroizing::new([0; 4096]);
    loop {
        match rustix::io::read(&file, buffer.as_mut_slice())? {
            0 => return Ok(Secret::new(content)),
            count => content.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// Paths at which the generation `name` and `set` differ.
pub(super) fn differing(root: &OwnedFd, name: &str, set: &FileSet) -> BTreeSet<String> {
    let Ok(generation) = directory(root, name) else { return BTreeSet::new() };
    let mut there = BTreeSet::new();
    // What cannot be listed is at least not called gone.
    regardless(list_files(&generation, "", &mut there, MAX_DEPTH));
    for (path, file) in set.iter() {
        if same_file(&generation, path.as_str(), file).unwrap_or_default() {
            there.remove(path.as_str());
        } else {
            there.insert(path.as_str().to_owned());
        }
    }
    there
}

fn list_files(parent: &OwnedFd, above: &str, into: &mut BTreeSet<String>, depth: usize) -> Result<(), Errno> {
    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    for name in names(parent)? {
        let stat = fs::statat(parent, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        let path = format!("{above}{name}");
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            list_files(&directory(parent, &name)?, &format!("{path}/"), into, depth)?;
        } else {
            into.insert(path);
        }
    }
    Ok(())
}

/// Counts what is not a directory.
fn count_files(parent: &OwnedFd, depth: usize) -> Result<usize, Errno> {
    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    let mut files = 0;
    for name in names(parent)? {
        let stat = fs::statat(parent, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        files += if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            count_files(&directory(parent, &name)?, depth)?
        } else {
            1
        };
    }
    Ok(files)
}
