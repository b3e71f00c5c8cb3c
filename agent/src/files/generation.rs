//! One generation: a directory that holds every file of one moment.

use std::time::SystemTime;

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::set::File;
use super::{During, FileSet, regardless, tree};
use crate::Error;
use crate::request::FilePath;

/// What a directory may be: the pod has to pass through it.
const DIRECTORY_MODE: Mode =
    Mode::RWXU.union(Mode::RGRP).union(Mode::XGRP).union(Mode::ROTH).union(Mode::XOTH);
/// How often another random name is tried.
const NAMES_TRIED: usize = 4;

/// Writes `set` into a new generation and returns its name. After an error nothing of it is left.
pub(super) fn write(root: &OwnedFd, set: &FileSet, wall: SystemTime) -> Result<String, Error> {
    let name = make(root, wall).during("making the generation's directory")?;
    match fill(root, &name, set) {
        Ok(()) => Ok(name),
        Err(error) => {
            discard(root, &name, set);
            Err(error)
        }
    }
}

/// Removes a generation that was to hold `set` and nobody has seen.
///
/// Goes by the names that were written and opens nothing: this runs when descriptors may have run out.
pub(super) fn discard(root: &OwnedFd, name: &str, set: &FileSet) {
    for (path, _) in set.iter() {
        regardless(fs::unlinkat(root, format!("{name}/{path}"), AtFlags::empty()));
    }
    for directory in set.directories().into_iter().rev() {
        regardless(fs::unlinkat(root, format!("{name}/{directory}"), AtFlags::REMOVEDIR));
    }
    regardless(fs::unlinkat(root, name, AtFlags::REMOVEDIR));
}

/// Makes a directory `..<UTC time>.<random>`.
fn make(root: &OwnedFd, wall: SystemTime) -> Result<String, Errno> {
    let time: String = humantime::format_rfc3339_seconds(wall)
        .to_string()
        .chars()
        .filter(|c| *c != 'Z')
        .map(|c| if c.is_ascii_digit() { c } else { '_' })
        .collect();
    let mut made = Err(Errno::EXIST);
    for _ in 0..NAMES_TRIED {
        let name = format!("..{time}.{:08x}", rand::random::<u32>());
        made = fs::mkdirat(root, name.as_str(), DIRECTORY_MODE).map(|()| name);
        if !matches!(made, Err(Errno::EXIST)) {
            break;
        }
    }
    made
}

fn fill(root: &OwnedFd, name: &str, set: &FileSet) -> Result<(), Error> {
    let generation = tree::directory(root, name).during("opening the generation's directory")?;
    let directories = set.directories();
    for directory in &directories {
        fs::mkdirat(&generation, *directory, DIRECTORY_MODE).during("making a directory")?;
    }
    for (path, file) in set.iter() {
        write_file(&generation, path, file)?;
    }
    // Only a umask makes this needed, and only now may it be done: an owner outside the directory's group loses the
    // setgid bit by chmod, and files made after that would not be the group's.
    if hidden(&generation).during("reading the generation's mode")? {
        for directory in &directories {
            fs::chmodat(&generation, *directory, DIRECTORY_MODE, AtFlags::empty())
                .during("opening up a directory")?;
        }
        fs::fchmod(&generation, DIRECTORY_MODE).during("opening up the generation's directory")?;
    }
    Ok(())
}

/// Whether a umask took bits from a directory that was just made.
fn hidden(directory: &OwnedFd) -> Result<bool, Errno> {
    Ok(!Mode::from_raw_mode(fs::fstat(directory)?.st_mode).contains(DIRECTORY_MODE))
}

fn write_file(generation: &OwnedFd, path: &FilePath, file: &File) -> Result<(), Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made =
        fs::openat(generation, path.as_str(), flags, Mode::RUSR | Mode::WUSR).during("making a file")?;
    let mut rest = file.content.expose();
    while !rest.is_empty() {
        let written = match rustix::io::write(&made, rest) {
            Ok(0) => return Err(Errno::IO).during("writing a file"),
            Err(Errno::INTR) => 0,
            other => other.during("writing a file")?,
        };
        rest = rest.get(written..).unwrap_or_default();
    }
    fs::fchmod(&made, Mode::from_raw_mode(file.mode)).during("setting a file's mode")
}
