//! A directory of files encrypted with SOPS to age keys: the store that needs no server.
//!
//! A file is decrypted in memory when somebody who may see it asks, its MAC verified. The plain document lives as long
//! as somebody holds it; while one does, others are given the same, and the file is not read again until it changes.
//!
//! The tree is read here and not by the crate rops 0.1.7, which of the files in tests/sops/fixtures refuses those with an
//! empty string, a comment in a list, a time, bytes or key groups, takes age keys from the environment only, and shows
//! plain values in the `Debug` of its errors.
//!
//! What SOPS protects and what not: values are bound to their keys and to the file's MAC, but names of keys are plain
//! and, where their values are not encrypted, can be changed by whoever can write the file.

mod cipher;
pub mod command;
mod emit;
mod file;
mod flaw;
mod format;
mod json;
mod key_file;
mod keys;
mod mac;
mod metadata;
mod place;
mod read;
mod scalar;
mod selection;
mod shamir;
#[cfg(test)]
mod tests;
mod time;
mod tree;
mod wanted;
mod write;
mod yaml;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use aws_lc_rs::digest::{SHA256, digest};

use crate::clock::Clock;
use crate::error::Error;
use crate::request::Source;
use crate::secret::Node;
use crate::spiffe::SpiffeId;

use super::allow::Rule;
use super::config::SopsConfig;
use super::{Fetched, Fresh};

pub use flaw::Flaw;
pub use format::Format;
pub use keys::KeyRing;
pub use read::parse;

use file::{Directory, Stamp, Trouble};
use key_file::KeyFile;
use wanted::Wanted;

/// Bytes of a content's hash that make its version.
const VERSION_BYTES: usize = 16;
/// Names that a message lists.
const LISTED: usize = 10;

/// The store. Clones are the same store.
#[derive(Clone)]
pub struct SopsStore(Arc<Shelf>);

struct Shelf {
    name: Box<str>,
    directory: Directory,
    key_file: KeyFile,
    allow: Vec<Rule>,
    clock: Clock,
    /// By the file's path beneath the directory. The inner lock is held while a file is read, so that several who ask
    /// at once make one decryption.
    documents: Mutex<HashMap<String, Arc<Mutex<Option<Known>>>>>,
}

/// A document in one state of its file and of the key file.
struct Known {
    stamp: Stamp,
    key: Stamp,
    settled: bool,
    version: String,
    document: Weak<Node>,
}

impl fmt::Debug for SopsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SopsStore").field("name", &self.0.name).field("directory", &self.0.directory).finish()
    }
}

impl SopsStore {
    /// Opens the store, having looked that its directory is there and that its key file holds a key.
    ///
    /// # Errors
    /// [`Error::Unusable`] when one is not as it should be.
    pub fn open(name: &str, config: SopsConfig, clock: Clock) -> Result<Self, Error> {
        let shelf = Shelf {
            name: name.into(),
            directory: Directory::new(config.directory),
            key_file: KeyFile::new(config.age_key_file),
            allow: config.allow,
            clock,
            documents: Mutex::default(),
        };
        shelf.directory.check().map_err(|trouble| {
            let problem = if trouble == Trouble::Missing {
                "does not exist, or is no directory".to_owned()
            } else {
                trouble.problem()
            };
            shelf.unusable(format!("the directory {} {problem}", shelf.directory.path().display()))
        })?;
        let keys = shelf.key_file.keys(clock.unix()).map_err(|problem| shelf.unusable(problem))?.keys;
        tracing::info!(
            store = name,
            directory = %shelf.directory.path().display(),
            rules = shelf.allow.len(),
            recipients = %keys.recipients().collect::<Vec<_>>().join(","),
            "store opened"
        );
        if shelf.allow.is_empty() {
            tracing::warn!(store = name, "no allow rules: nobody may read anything");
        }
        Ok(Self(Arc::new(shelf)))
    }

    /// The document that `source` names, if `id` may read it.
    ///
    /// Nothing on disk is touched before the rules have allowed it.
    ///
    /// # Errors
    /// [`Error::Request`] for a path, option or version that cannot be, [`Error::Denied`], [`Error::NotFound`],
    /// [`Error::Unusable`] for a file or key that is there but broken, [`Error::StoreUnavailable`] for trouble with
    /// the file system.
    pub async fn fetch(&self, id: &SpiffeId, source: &Source) -> Result<Fetched, Error> {
        let wanted = Wanted::parse(source)?;
        if !self.0.allows(id, &wanted) {
            return Err(self.0.denied(id, &wanted));
        }
        let (here, asking) = (Arc::clone(&self.0), id.clone());
        tokio::task::spawn_blocking(move || here.document(&asking, &wanted))
            .await
            .unwrap_or(Err(Error::ShuttingDown))
    }
}

impl Shelf {
    fn allows(&self, id: &SpiffeId, wanted: &Wanted) -> bool {
        wanted.names().any(|name| self.allow.iter().any(|rule| rule.permits(id, name)))
    }

    fn document(&self, id: &SpiffeId, wanted: &Wanted) -> Result<Fetched, Error> {
        let now = self.clock.unix();
        let (path, format, mut file) = self.open_file(id, wanted)?;
        let key = self.key_file.keys(now).map_err(|problem| self.unusable(problem))?;
        let slot = Arc::clone(self.lock_documents().entry(path.clone()).or_default());
        let mut known = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = file::look(&file)
            .map(|metadata| Stamp::of(&metadata))
            .map_err(|trouble| self.broken(&path, trouble))?;
        let unchanged =
            known.as_ref().filter(|known| known.settled && known.stamp == stamp && known.key == key.stamp);
        if let Some((document, known)) = unchanged.and_then(|known| Some((known.document.upgrade()?, known)))
        {
            return Ok(Fetched {
                document,
                version: known.version.clone(),
                fresh: Fresh::AsAsked,
                request_id: None,
            });
        }
        let (content, stamp) = file::read(&mut file).map_err(|trouble| self.broken(&path, trouble))?;
        let version = version_of(&content);
        let same = known
            .as_ref()
            .filter(|known| known.version == version && known.key == key.stamp)
            .and_then(|known| known.document.upgrade());
        let document = match same {
            Some(document) => document,
            None => match read::parse(&content, format, &key.keys) {
                Ok(node) => {
                    tracing::debug!(store = %self.name, path, version, "document decrypted");
                    Arc::new(node)
                }
                Err(flaw) => {
                    *known = None;
                    return Err(self.unusable(format!("{path}: {flaw}")));
                }
            },
        };
        *known = Some(Known {
            stamp,
            key: key.stamp,
            settled: stamp.is_settled(now),
            version: version.clone(),
            document: Arc::downgrade(&document),
        });
        drop(known);
        self.forget_unheld();
        Ok(Fetched { document, version, fresh: Fresh::AsAsked, request_id: None })
    }

    /// Drops what is known of documents that nobody holds any more.
    fn forget_unheld(&self) {
        self.lock_documents().retain(|_, slot| {
            // One that is locked is being read.
            slot.try_lock()
                .map_or(true, |known| known.as_ref().is_some_and(|known| known.document.strong_count() > 0))
        });
    }

    fn lock_documents(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Mutex<Option<Known>>>>> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one file that is meant.
    fn open_file(&self, id: &SpiffeId, wanted: &Wanted) -> Result<(String, Format, File), Error> {
        let mut found = Vec::new();
        for (path, format) in wanted.candidates() {
            match self.directory.open(&path) {
                Ok(file) => found.push((path, format, file)),
                Err(Trouble::Missing) => {}
                Err(trouble) => return Err(self.broken(&path, trouble)),
            }
        }
        if found.len() > 1 {
            let names = found.iter().map(|(path, ..)| path.as_str()).collect::<Vec<_>>().join(" and ");
            return Err(self.unusable(format!("{names} are both there; write the reference with the ending")));
        }
        match found.pop() {
            Some(found) => Ok(found),
            None => Err(self.missing(id, wanted)),
        }
    }

    fn missing(&self, id: &SpiffeId, wanted: &Wanted) -> Error {
        if let Err(trouble) = self.directory.check() {
            return self.unavailable(format!(
                "the directory {} {}",
                self.directory.path().display(),
                trouble.problem()
            ));
        }
        if wanted.ending().is_none()
            && self.directory.open(wanted.path()).is_ok_and(|file| file::look(&file).is_ok())
        {
            return self.unusable(format!(
                "{} is neither .yaml, .yml nor .json: the dotenv, ini and binary forms of sops are not supported; convert it to YAML or JSON",
                wanted.path()
            ));
        }
        let folder = wanted.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut names: Vec<String> = self
            .directory
            .names(folder)
            .iter()
            .filter_map(|name| Format::of(name))
            .map(|(_, stem)| format!("{prefix}{stem}"))
            .filter(|path| self.allow.iter().any(|rule| rule.permits(id, path)))
            .collect();
        names.sort();
        names.dedup();
        let more = if names.len() > LISTED { ", …" } else { "" };
        names.truncate(LISTED);
        let there = if names.is_empty() {
            format!("beside it is nothing that {id} may read")
        } else {
            format!("there is {}{more}", names.join(", "))
        };
        Error::NotFound {
            reference: wanted.to_string(),
            problem: format!(
                "no file {}; {there}",
                wanted.candidates().map(|(path, _)| path).collect::<Vec<_>>().join(", ")
            ),
        }
    }

    fn denied(&self, id: &SpiffeId, wanted: &Wanted) -> Error {
        Error::Denied {
            reference: wanted.to_string(),
            problem: format!(
                "{id} may not read it; the store {} would allow it with the rule {{ id: \"{id}\", paths: [\"{}\"] }}",
                self.name,
                wanted.path()
            ),
        }
    }

    fn broken(&self, path: &str, trouble: Trouble) -> Error {
        let problem = format!("{path} {}", trouble.problem());
        match trouble {
            // One that is missing now was there when it was looked for.
            Trouble::System(_) | Trouble::Unsteady | Trouble::Missing => self.unavailable(problem),
            Trouble::Escapes | Trouble::NotAFile | Trouble::NotReadable | Trouble::TooLarge => {
                self.unusable(problem)
            }
        }
    }

    fn unusable(&self, problem: String) -> Error {
        Error::Unusable { store: self.name.to_string(), problem }
    }

    fn unavailable(&self, problem: String) -> Error {
        Error::StoreUnavailable { store: self.name.to_string(), problem, retry_after: None }
    }
}

/// Of the encrypted file: whatever changes in the document changes it.
fn version_of(content: &[u8]) -> String {
    let hash = digest(&SHA256, content);
    let prefix = hash.as_ref().first_chunk::<VERSION_BYTES>().copied().unwrap_or_default();
    format!("{:032x}", u128::from_be_bytes(prefix))
}
