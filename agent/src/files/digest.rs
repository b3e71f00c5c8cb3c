//! Whether two sets of files are the same, without keeping either.

use aws_lc_rs::digest::{Context, SHA256};

use super::FileSet;

/// SHA-256 over names, modes and contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(set: &FileSet) -> Self {
        let mut context = Context::new(&SHA256);
        // Lengths before texts: no two sets feed the same bytes.
        let mut part = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_le_bytes());
            context.update(bytes);
        };
        for (path, file) in set.iter() {
            part(path.as_str().as_bytes());
            part(&file.mode.to_le_bytes());
            part(file.content.expose());
        }
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(context.finish().as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }
}
