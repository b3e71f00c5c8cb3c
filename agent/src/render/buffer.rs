//! Bytes that grow without leaving copies behind.

use std::fmt;
use std::io;

use zeroize::Zeroizing;

use crate::secret::Secret;

/// A buffer for secret bytes, up to a limit.
///
/// A vector that grows frees its old allocation as it is; this one moves to a larger one itself, so that the old one
/// is overwritten.
#[derive(Default)]
pub(super) struct Buffer {
    bytes: Zeroizing<Vec<u8>>,
    limit: usize,
    full: bool,
}

impl Buffer {
    /// An empty buffer that takes up to `limit` bytes.
    pub(super) fn up_to(limit: usize) -> Self {
        Self { bytes: Zeroizing::default(), limit, full: false }
    }

    pub(super) fn push(&mut self, more: &[u8]) -> Result<(), fmt::Error> {
        let needed = self.bytes.len().saturating_add(more.len());
        if needed > self.limit {
            self.full = true;
            return Err(fmt::Error);
        }
        if needed > self.bytes.capacity() {
            let capacity = needed.max(self.bytes.capacity().saturating_mul(2)).max(256);
            let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
            larger.extend_from_slice(&self.bytes);
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    /// Whether something did not fit.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    pub(super) fn into_secret(self) -> Secret {
        self.bytes.into()
    }
}

impl io::Write for &mut Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes).map_err(|_| io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_up_to_its_limit() {
        let mut buffer = Buffer::up_to(1000);
        for n in 0..100 {
            buffer.push(format!("{n:010}").as_bytes()).unwrap();
        }
        assert!(!buffer.is_full());
        assert!(buffer.push(b"x").is_err());
        assert!(buffer.is_full());
        let secret = buffer.into_secret();
        assert_eq!(secret.len(), 1000);
        assert!(secret.expose().ends_with(b"0000000099"));
    }
}
