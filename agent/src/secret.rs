//! Secrets as types: what holds one shows nothing, and is overwritten when dropped.

use std::collections::BTreeMap;
use std::fmt;

use zeroize::Zeroizing;

/// Bytes that must not be seen: a password, a key, a token.
///
/// `Debug` shows the length only; there is no `Display`, no `Clone` and no `Serialize`. The bytes are
/// overwritten when the value is dropped.
#[derive(PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes over `bytes`. The vector is not copied; build it with enough capacity, as a vector that grows
    /// leaves its old allocation behind.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes. Every call of this is a place to look at when asking where secrets go.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A copy, made on purpose and overwritten on its own.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self::new(self.0.to_vec())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.len())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text.into_bytes())
    }
}

impl From<Zeroizing<Vec<u8>>> for Secret {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

/// What a store holds at one path: a tree as in JSON whose leaves are secret. Names of members are not.
#[derive(Debug, PartialEq, Eq)]
pub enum Node {
    /// Members by name.
    Map(BTreeMap<String, Node>),
    /// Elements in order.
    List(Vec<Node>),
    /// A string (UTF-8) or raw bytes.
    Text(Secret),
    /// A number, in the very digits the store gave: no rounding through a float.
    Number(Secret),
    /// `true` or `false`.
    Bool(bool),
    /// Nothing.
    Null,
}

/// Overwrites what calls that have returned left on this thread's stack, as far down as a template's rendering goes.
///
/// The allocator overwrites what is freed (`main.rs`); short strings of libraries live on the stack instead. Best effort:
/// the compiler may keep values in places that nothing here reaches.
#[inline(never)]
#[expect(clippy::large_stack_arrays, reason = "the stack is what it is for; a thread has 2 MiB")]
pub(crate) fn scrub_stack() {
    const REACH: usize = 64 * 1024;
    let mut below = [0_u8; REACH];
    // The compiler must believe that somebody reads it.
    std::hint::black_box(&mut below);
}
