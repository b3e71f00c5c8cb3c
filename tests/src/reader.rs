//! Reads a volume as a careful container does: `..data` is resolved once, and every file is read beneath it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};

/// One generation of a volume's files: their bytes by their path.
pub type Generation = BTreeMap<String, Vec<u8>>;

/// Opens the directory that `..data` names now.
pub fn open_generation(volume: &Path) -> Result<OwnedFd> {
    openat(CWD, volume.join("..data"), OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("{}/..data", volume.display()))
}

/// Reads all files of the generation that `..data` names now.
pub fn read(volume: &Path) -> Result<Generation> {
    read_generation(&open_generation(volume)?)
}

/// Reads all files of a generation.
pub fn read_generation(directory: &OwnedFd) -> Result<Generation> {
    let mut files = Generation::new();
    collect(directory.as_fd(), "", &mut files)?;
    Ok(files)
}

fn collect(directory: std::os::fd::BorrowedFd<'_>, prefix: &str, files: &mut Generation) -> Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "." || name == ".." {
            continue;
        }
        let path = format!("{prefix}{name}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = openat(directory, name.as_str(), flags, Mode::empty()).with_context(|| path.clone())?;
        if entry.file_type() == FileType::Directory {
            collect(opened.as_fd(), &format!("{path}/"), files)?;
        } else {
            let mut bytes = Vec::new();
            File::from(opened).read_to_end(&mut bytes).with_context(|| path.clone())?;
            files.insert(path, bytes);
        }
    }
    Ok(())
}

/// One file by its plain path, as most programs read it.
pub fn read_file(volume: &Path, name: &str) -> Result<String> {
    let path = volume.join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The same for a file that may not be there.
pub fn read_optional(volume: &Path, name: &str) -> Result<Option<String>> {
    match std::fs::read_to_string(volume.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
