//! What a pod asks for, parsed once: after [`Request::parse`] nobody looks at a string again.

mod content;
mod duration;
mod key;
mod mode;
mod on_change;
#[cfg(test)]
mod page;
mod parse;
mod path;
mod reference;
mod suggest;
mod template;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use content::{Content, Template};
pub use on_change::{OnChange, Post};
pub(crate) use suggest::nearest;
pub(crate) use template::syntax;
pub(crate) use value::hint;

/// How often plain secrets are looked at again unless the pod says otherwise.
pub const DEFAULT_REFRESH: Duration = Duration::from_secs(60);

/// Everything one volume is to hold.
#[derive(Debug)]
pub struct Request {
    /// The files, at least one, in order of their paths; no two collide.
    pub files: Vec<FileSpec>,
    /// How long a plain secret is good for before it is looked at again.
    pub refresh: Duration,
    /// What becomes of files whose secret is withdrawn or whose identity has ended.
    pub on_revoked: OnRevoked,
    /// Whether a pod may start with a secret that another pod of the same identity has been given, while the store
    /// does not answer.
    pub stale_ok: bool,
    /// Whom to tell when files have changed.
    pub on_change: Option<OnChange>,
    /// Which of several SVIDs of the pod this volume is for; none: the one that the agent is set up for.
    pub hint: Option<Arc<str>>,
}

/// What becomes of a file when its secret was deleted, or access to it withdrawn, or when the SVID in it has ended
/// without a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRevoked {
    /// It stays as it was last: what runs goes on running.
    #[default]
    Keep,
    /// It is removed, and comes back when it can be had again.
    Wipe,
}

/// One file.
#[derive(Debug)]
pub struct FileSpec {
    /// The annotation or attribute that asked for it, for messages.
    pub key: String,
    /// Where it lies, relative to the volume's root.
    pub path: FilePath,
    /// Permission bits when the pod chose them.
    pub mode: Option<u32>,
    /// What goes into it.
    pub content: Content,
}

/// A path of one to n components, each at most 255 bytes, none of them `.`, `..` or beginning with `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath(pub(crate) String);

impl FilePath {
    /// The path, with `/` between its components.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components in order.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FileSpec {
    /// The secrets that the file may be made from, those of a template's branches included.
    pub(crate) fn sources(&self) -> impl Iterator<Item = Source> {
        self.content.calls().into_iter().map(|reference| reference.source.clone())
    }
}

/// `<store>:<path>[#<field>][?option&option]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// What is fetched: shared by all references to fields of the same secret.
    pub source: Source,
    /// Which part of it is wanted; none: all of it, as JSON.
    pub field: Option<Field>,
    /// A secret that is not there leaves the file out instead of keeping the pod waiting.
    pub optional: bool,
    /// How the store's text becomes the file's bytes.
    pub encoding: Encoding,
    /// How long this secret is good for, when the reference says so.
    pub refresh: Option<Duration>,
    /// Permission bits, when the reference says so.
    pub mode: Option<u32>,
}

/// What a store is asked for. Two references with equal sources are one fetch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// The store's configured name.
    pub store: Arc<str>,
    /// The path inside the store, not empty.
    pub path: Arc<str>,
    /// The version asked for; none: the newest.
    pub version: Option<Arc<str>>,
    /// Options that only the store understands, by name.
    pub options: BTreeMap<String, String>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.store, self.path)
    }
}

/// Which part of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A member of the top level.
    Key(String),
    /// A JSON Pointer (RFC 6901), unescaped.
    Pointer(Vec<String>),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "#{key}"),
            Self::Pointer(parts) => {
                f.write_str("#")?;
                parts.iter().try_for_each(|part| write!(f, "/{}", part.replace('~', "~0").replace('/', "~1")))
            }
        }
    }
}

/// Without options, for messages; the alternate form (`{:#}`) has them, and either parses back.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        self.field.iter().try_for_each(|field| field.fmt(f))?;
        if f.alternate() { reference::write_options(self, f) } else { Ok(()) }
    }
}

/// How a store's text becomes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Plain,
    /// The store's text is base64 (standard alphabet) of what the file is to hold.
    Base64,
}

/// The configured stores, for telling a store from a slip of the pen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreNames(BTreeSet<Arc<str>>);

impl StoreNames {
    /// The configured name, shared; none: no such store.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<str>> {
        self.0.get(name)
    }

    /// The names in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }
}

impl<T: Into<Arc<str>>> FromIterator<T> for StoreNames {
    fn from_iter<I: IntoIterator<Item = T>>(names: I) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }
}

impl Request {
    /// The references that every turn needs, in order of their files; those inside templates' branches are asked
    /// for when the branch is taken.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.files.iter().flat_map(|file| file.content.references())
    }

    /// The keys that ask for `source`, in order of their files, those included whose template does so in a branch.
    pub(crate) fn keys_of(&self, source: &Source) -> impl Iterator<Item = &str> {
        let asks = move |file: &&FileSpec| file.content.calls().iter().any(|call| call.source == *source);
        self.files.iter().filter(asks).map(|file| file.key.as_str())
    }

    /// The audiences of the JWT-SVIDs asked for.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter_map(|file| file.content.audience())
    }
}

/// What is wrong with a part of a request and what to write instead, before the key is known that it stands under.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Problem(String);

impl Problem {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
