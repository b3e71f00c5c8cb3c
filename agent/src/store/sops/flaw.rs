//! What can be wrong with a SOPS file, in words that never carry a value of it.

use super::format::Format;

/// Nesting beyond this is refused; so are files whose mappings and lists go deeper than any person writes.
pub(super) const MAX_DEPTH: usize = 64;

/// A longer key is refused: each value is authenticated together with all keys that lead to it.
pub(super) const MAX_KEY_BYTES: usize = 1024;

/// Why a file cannot be read as SOPS wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// Not text.
    #[error("no UTF-8 text from byte {at} on")]
    NotUtf8 {
        /// Offset of the first wrong byte.
        at: usize,
    },
    /// Not YAML, or not JSON.
    #[error("no valid {format} at line {line}, column {column}")]
    Syntax {
        /// What it was read as.
        format: Format,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Nested too deep.
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// A key twice in one mapping.
    #[error("the key {key:?} is twice in one mapping")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A key that nobody would write.
    #[error("a key is longer than {MAX_KEY_BYTES} bytes")]
    LongKey,
    /// Something that is left out on purpose.
    #[error("{what} not supported: {remedy}")]
    Unsupported {
        /// What it is, with its verb: `aliases are`.
        what: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A plain file.
    #[error("not encrypted: it has no sops section; encrypt it with sops encrypt")]
    NotEncrypted,
    /// An encrypted file where a plain one belongs.
    #[error("encrypted already: it has a sops section")]
    Encrypted,
    /// The section that SOPS adds is damaged.
    #[error("sops.{key} {problem}")]
    Metadata {
        /// Which member of the section.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// None of our keys opens it.
    #[error("{0}")]
    NoKey(String),
    /// A value that ought to be encrypted is not.
    #[error("{path} is not encrypted, though the file's own rules say it is")]
    Plain {
        /// Keys from the top to the value, with colons.
        path: String,
    },
    /// A value that does not decrypt.
    #[error("{path} {problem}")]
    Value {
        /// Keys from the top to the value, with colons.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Values were added, removed, reordered or changed.
    #[error(
        "its MAC does not match: it was changed by something other than sops; restore it, or open and save it with sops edit --ignore-mac after a look at it"
    )]
    Mac,
    /// The operating system gave no randomness.
    #[error("no random bytes to be had from the system")]
    NoRandomness,
}

impl Flaw {
    pub(super) fn metadata(key: &'static str, problem: impl Into<String>) -> Self {
        Self::Metadata { key, problem: problem.into() }
    }
}
