//! The file with our age keys, read again when it changes.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::file::{self, Stamp, Trouble};
use super::keys::KeyRing;

/// Permission bits of people who are neither owner nor group: a key that they may read is no secret. The group may, as
/// that is how kubelet gives a file to a process of another uid.
const OTHERS: u32 = 0o006;

/// The path, and what was read last.
pub(super) struct KeyFile {
    path: PathBuf,
    known: Mutex<Option<Known>>,
}

/// Keys as they were in one state of the file.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) stamp: Stamp,
    pub(super) keys: Arc<KeyRing>,
    settled: bool,
}

impl KeyFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, known: Mutex::new(None) }
    }

    /// The keys as the file has them at `now` (seconds since 1970).
    ///
    /// # Errors
    /// A sentence about the file that shows nothing of it.
    pub(super) fn keys(&self, now: i64) -> Result<Known, String> {
        self.read(now).map_err(|problem| format!("the age key file {} {problem}", self.path.display()))
    }

    fn read(&self, now: i64) -> Result<Known, String> {
        let problem = |trouble: Trouble| trouble.problem();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = File::open(&self.path).map_err(|error| problem(error.into()))?;
        let metadata = file::look(&file).map_err(problem)?;
        if metadata.mode() & OTHERS != 0 {
            return Err(format!(
                "has mode {:04o}: everybody may use it; give it 0400 or 0440 (for a mounted Secret: defaultMode: 0440)",
                metadata.mode() & 0o7777
            ));
        }
        let stamp = Stamp::of(&metadata);
        if let Some(known) = known.as_ref().filter(|known| known.settled && known.stamp == stamp) {
            return Ok(known.clone());
        }
        let (content, stamp) = file::read(&mut file).map_err(problem)?;
        let keys = Arc::new(KeyRing::parse(&content)?);
        Ok(known.insert(Known { stamp, keys, settled: stamp.is_settled(now) }).clone())
    }
}
