//! Our age keys, and the data keys that they open.

use std::io::Read;

use age::armor::ArmoredReader;
use age::x25519;
use zeroize::Zeroizing;

use super::cipher::{DataKey, KEY_BYTES};
use super::flaw::Flaw;
use super::metadata::{Group, Metadata, Wrapped};
use super::shamir;

/// A data key has 32 bytes, a share of one 33; nothing else belongs there.
const MAX_WRAPPED_BYTES: u16 = 1024;
/// How many recipients a message names.
const NAMED: usize = 5;

/// X25519 identities of age.
pub struct KeyRing(Vec<x25519::Identity>);

impl KeyRing {
    /// From the text of a key file as `age-keygen` writes it: one `AGE-SECRET-KEY-1…` a line, and comments.
    ///
    /// # Errors
    /// A sentence that names the line and no text of it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "is no text".to_owned())?;
        let mut identities = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            identities.push(line.parse().map_err(|_| {
                format!("holds something in line {} that is no AGE-SECRET-KEY-1… (X25519); other kinds are not supported", at + 1)
            })?);
        }
        if identities.is_empty() {
            return Err("holds no key: one line must begin with AGE-SECRET-KEY-1; make one with countersign-agent sops keygen".into());
        }
        Ok(Self(identities))
    }

    /// The public keys, to which files must be encrypted.
    pub fn recipients(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|identity| identity.to_public().to_string())
    }

    /// Opens the data key of a file.
    pub(super) fn open(&self, metadata: &Metadata) -> Result<DataKey, Flaw> {
        let mut parts = Vec::new();
        let mut failure = None;
        for group in &metadata.groups {
            match self.open_group(group) {
                Ok(part) => parts.push(part),
                Err(flaw) => failure = failure.or(Some(flaw)),
            }
        }
        let key = match (metadata.groups.len(), failure) {
            (1, None) => parts.pop(),
            (1, Some(flaw)) => return Err(flaw),
            (groups, _) if parts.len() < metadata.threshold => {
                let [have, need] = [parts.len(), metadata.threshold];
                return Err(Flaw::NoKey(format!(
                    "our keys open {have} of its {groups} key groups, and {need} are needed (shamir_threshold); {}",
                    self.ours()
                )));
            }
            _ => shamir::combine(&parts),
        };
        let key = key.ok_or_else(|| Flaw::metadata("key_groups", "hold shares that do not fit together"))?;
        let key: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(
            key.as_slice()
                .try_into()
                .map_err(|_| Flaw::metadata("age", "holds a data key that is not 32 bytes long"))?,
        );
        Ok(DataKey::new(&key))
    }

    fn open_group(&self, group: &Group) -> Result<Zeroizing<Vec<u8>>, Flaw> {
        for wrapped in &group.age {
            if let Some(part) = self.unwrap(wrapped)? {
                return Ok(part);
            }
        }
        let others = group.others.iter().copied().collect::<Vec<_>>().join(", ");
        Err(Flaw::NoKey(match (group.age.len(), group.others.is_empty()) {
            (0, _) => format!("encrypted to no age recipient (but to: {others}); {}", self.remedy()),
            (1, _) => format!("it is encrypted to {}; {}", names(&group.age), self.remedy()),
            (count, _) => {
                format!(
                    "none of the {count} age recipients is ours: {}; {}",
                    names(&group.age),
                    self.remedy()
                )
            }
        }))
    }

    fn unwrap(&self, wrapped: &Wrapped) -> Result<Option<Zeroizing<Vec<u8>>>, Flaw> {
        let damaged =
            |_| Flaw::metadata("age", format!("is damaged: enc of {} is no age file", name(wrapped)));
        let decryptor = age::Decryptor::new_buffered(ArmoredReader::new(wrapped.armored.trim().as_bytes()))
            .map_err(damaged)?;
        let reader = match decryptor.decrypt(self.0.iter().map(|identity| identity as &dyn age::Identity)) {
            Ok(reader) => reader,
            Err(age::DecryptError::NoMatchingKeys) => return Ok(None),
            Err(error) => return Err(damaged(error)),
        };
        // Large enough from the start, so that nothing is left behind by growing.
        let mut part = Zeroizing::new(Vec::with_capacity(2 * usize::from(MAX_WRAPPED_BYTES)));
        reader
            .take(MAX_WRAPPED_BYTES.into())
            .read_to_end(&mut part)
            .map_err(|error| damaged(age::DecryptError::Io(error)))?;
        Ok(Some(part))
    }

    fn ours(&self) -> String {
        format!("ours: {}", self.recipients().collect::<Vec<_>>().join(", "))
    }

    fn remedy(&self) -> String {
        format!("{}; add it with sops updatekeys, or give the agent another key", self.ours())
    }
}

/// What a file says about its recipients is shown only if it is a recipient.
fn name(wrapped: &Wrapped) -> &str {
    let recipient = wrapped.recipient.as_str();
    let legal = recipient.starts_with("age1")
        && recipient.len() <= 80
        && recipient.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if legal { recipient } else { "(no X25519 recipient)" }
}

fn names(recipients: &[Wrapped]) -> String {
    let mut names = recipients.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
    if recipients.len() > NAMED {
        names.push_str(", …");
    }
    names
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_key_file_with_comments_and_several_keys() {
        let keys = [x25519::Identity::generate(), x25519::Identity::generate()];
        let [one, two] = keys.each_ref().map(|key| key.to_string().expose_secret().to_owned());
        let ring = KeyRing::parse(format!("# created: today\r\n\n{one}\r\n  {two}  \n").as_bytes()).unwrap();
        let public: Vec<_> = keys.iter().map(|key| key.to_public().to_string()).collect();
        assert_eq!(ring.recipients().collect::<Vec<_>>(), public);
    }

    #[test]
    fn what_is_no_key_file_is_not_quoted() {
        for (text, words) in [
            (&b""[..], "holds no key"),
            (b"# only a comment\n", "holds no key"),
            (b"\n\nhunter2\n", "line 3"),
            (b"AGE-SECRET-KEY-PQ-1HUNTER2\n", "line 1"),
            (b"AGE-SECRET-KEY-1HUNTER2\n", "line 1"),
            (b"\xff", "no text"),
        ] {
            let error = KeyRing::parse(text).map(|_| ()).unwrap_err();
            assert!(error.contains(words) && !error.to_lowercase().contains("hunter2"), "{error}");
        }
    }
}
