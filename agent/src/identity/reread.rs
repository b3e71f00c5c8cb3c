//! Files that others replace while we run: tokens that rotate, bundles that change, key sets.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::clock::Clock;

/// A file whose looks did not change is read again after this long all the same.
const MAX_AGE: Duration = Duration::from_secs(60);
/// The longest such file there is any reason for.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file gave no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {}: {problem}", path.display())]
pub(crate) struct RereadError {
    what: &'static str,
    path: PathBuf,
    problem: String,
}

/// What tells one state of a file from the next. Kubelet replaces a whole directory by a symbolic link, so the
/// inode changes even where the time does not.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

type Parse<T> = Box<dyn Fn(&[u8]) -> Result<T, String> + Send + Sync>;

struct Seen<T> {
    stamp: Stamp,
    at: Instant,
    value: Arc<T>,
}

/// A file that is parsed again whenever it changes. A state of it that can't be read or parsed never replaces
/// the last good one: who writes it may be half-way through.
pub(crate) struct Reread<T> {
    what: &'static str,
    path: PathBuf,
    clock: Clock,
    parse: Parse<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    seen: Option<Seen<T>>,
    /// What was last warned of, so that it is said once and not at every look.
    problem: Option<RereadError>,
}

impl<T> Reread<T> {
    /// Nothing is read yet. `what` names the content in messages; `parse` says in words what is wrong, without
    /// repeating the content.
    pub(crate) fn new(
        what: &'static str,
        path: impl Into<PathBuf>,
        clock: Clock,
        parse: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            what,
            path: path.into(),
            clock,
            parse: Box::new(parse),
            state: Mutex::new(State { seen: None, problem: None }),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The value of the file as it is now, or was when it last had one.
    pub(crate) async fn current(&self) -> Result<Arc<T>, RereadError> {
        let mut state = self.state.lock().await;
        let stamp = self.stamp();
        if let (Some(last), Ok(stamp)) = (&state.seen, &stamp)
            && last.stamp == *stamp
            && self.clock.now().duration_since(last.at) < MAX_AGE
        {
            return Ok(Arc::clone(&last.value));
        }
        let read = match stamp {
            Ok(stamp) => self.read(stamp).await,
            Err(error) => Err(error),
        };
        match (read, &state.seen) {
            (Ok(new), _) => {
                let value = Arc::clone(&new.value);
                *state = State { seen: Some(new), problem: None };
                Ok(value)
            }
            (Err(problem), Some(last)) => {
                let value = Arc::clone(&last.value);
                if state.problem.as_ref() != Some(&problem) {
                    tracing::warn!(%problem, "going on with its last good content");
                    state.problem = Some(problem);
                }
                Ok(value)
            }
            (Err(problem), None) => Err(problem),
        }
    }

    /// Looked at in place: the way to another thread and back takes many times what a look at a local file does.
    fn stamp(&self) -> Result<Stamp, RereadError> {
        let found = std::fs::metadata(&self.path).map_err(|error| self.unreadable(&error))?;
        if found.len() > MAX_BYTES {
            return Err(self.wrong(format!("{} bytes are more than the {MAX_BYTES} expected", found.len())));
        }
        Ok(Stamp {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            changed: (found.mtime(), found.mtime_nsec()),
        })
    }

    async fn read(&self, stamp: Stamp) -> Result<Seen<T>, RereadError> {
        let bytes = tokio::fs::read(&self.path).await.map_err(|error| self.unreadable(&error))?;
        let bytes = Zeroizing::new(bytes);
        let value = (self.parse)(&bytes).map_err(|problem| self.wrong(problem))?;
        Ok(Seen { stamp, at: self.clock.now(), value: Arc::new(value) })
    }

    fn unreadable(&self, error: &io::Error) -> RereadError {
        self.wrong(format!("can't be read: {}", error.kind()))
    }

    fn wrong(&self, problem: String) -> RereadError {
        RereadError { what: self.what, path: self.path.clone(), problem }
    }
}

impl<T> fmt::Debug for Reread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reread({} {})", self.what, self.path.display())
    }
}

/// Parses a file that holds one token and perhaps a line end.
pub(crate) fn token(bytes: &[u8]) -> Result<crate::secret::Secret, String> {
    let token = bytes.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err("holds no token: one line of printable characters is expected".to_owned());
    }
    Ok(crate::secret::Secret::new(token.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8]) -> Result<u32, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is no text".to_owned())?;
        text.parse().map_err(|_| "is no number".to_owned())
    }

    fn replace(path: &Path, text: &str) {
        let next = path.with_extension("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, path).unwrap();
    }

    #[tokio::test]
    async fn a_replaced_file_is_read_again_and_a_broken_one_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        let file = Reread::new("number", &path, Clock::system(), number);
        assert!(
            file.current().await.unwrap_err().to_string().ends_with("n: can't be read: entity not found")
        );
        replace(&path, "x");
        assert!(file.current().await.unwrap_err().to_string().ends_with("n: is no number"));
        replace(&path, "1");
        assert_eq!(*file.current().await.unwrap(), 1);
        replace(&path, "2");
        assert_eq!(*file.current().await.unwrap(), 2);
        replace(&path, "y");
        assert_eq!(*file.current().await.unwrap(), 2);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(*file.current().await.unwrap(), 2);
        replace(&path, &"0".repeat(2 << 20));
        assert_eq!(*file.current().await.unwrap(), 2);
    }

    #[tokio::test]
    async fn unchanged_looks_are_believed_for_a_minute_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        std::fs::write(&path, "1").unwrap();
        let times = std::fs::metadata(&path).unwrap().modified().unwrap();
        let file = Reread::new("number", &path, Clock::system(), number);
        assert_eq!(*file.current().await.unwrap(), 1);
        std::fs::write(&path, "2").unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
        assert_eq!(*file.current().await.unwrap(), 1);
        tokio::time::pause();
        tokio::time::advance(MAX_AGE).await;
        tokio::time::resume();
        assert_eq!(*file.current().await.unwrap(), 2);
    }

    #[test]
    fn tokens_are_one_line() {
        assert_eq!(token(b"a.b.c\n").unwrap().expose(), b"a.b.c");
        assert!(token(b"\n").is_err());
        assert!(token(b"a\nb").is_err());
    }
}
