//! What a volume is to hold.

use std::collections::{BTreeMap, BTreeSet};

use crate::request::FilePath;
use crate::secret::Secret;

/// The permission bits of a file whose pod chose none: readable for all, or with a group of its own for that.
#[must_use]
pub fn default_mode(fs_group: Option<u32>) -> u32 {
    if fs_group.is_some() { 0o440 } else { 0o444 }
}

/// Files by their paths. The paths come from one request, in which none collide.
#[derive(Debug, Default)]
pub struct FileSet(BTreeMap<FilePath, File>);

/// One file of a [`FileSet`].
#[derive(Debug)]
pub(super) struct File {
    pub(super) content: Secret,
    pub(super) mode: u32,
}

impl FileSet {
    /// Adds a file with permission bits `mode`.
    pub fn insert(&mut self, path: FilePath, content: Secret, mode: u32) {
        self.0.insert(path, File { content, mode });
    }

    /// How many files there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.values().map(|file| file.content.len() as u64).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&FilePath, &File)> {
        self.0.iter()
    }

    /// The first components of the paths: the names that are visible in the volume's root.
    pub(super) fn top_level(&self) -> BTreeSet<String> {
        self.0.keys().filter_map(|path| path.components().next()).map(ToOwned::to_owned).collect()
    }

    /// The directories that hold the files, outer ones before inner ones.
    pub(super) fn directories(&self) -> BTreeSet<&str> {
        self.0.keys().flat_map(FilePath::ancestors).collect()
    }
}
