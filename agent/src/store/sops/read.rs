//! Reads a SOPS file: every value decrypted, the MAC verified before anything is handed out.

use super::cipher::{DataKey, Opened};
use super::flaw::Flaw;
use super::format::Format;
use super::keys::KeyRing;
use super::mac::Mac;
use super::metadata::Metadata;
use super::place::Place;
use super::tree::{Entry, Scalar, Value};
use super::{json, yaml};
use crate::secret::Node;

/// Where the section of sops is in a file.
pub(super) const SECTION: &str = "sops";

/// The document in `bytes`, decrypted with one of `keys`.
///
/// # Errors
/// What is wrong, without any value.
pub fn parse(bytes: &[u8], format: Format, keys: &KeyRing) -> Result<Node, Flaw> {
    decrypt(bytes, format, keys).map(Value::into_node)
}

/// A file's members in order, encrypted or not, and how many comments were passed over.
pub(super) fn members(bytes: &[u8], format: Format) -> Result<(Vec<Entry>, usize), Flaw> {
    let text = std::str::from_utf8(bytes).map_err(|error| Flaw::NotUtf8 { at: error.valid_up_to() })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (value, comments) = match format {
        Format::Yaml => yaml::parse(text).map(|parsed| (parsed.value, parsed.comments))?,
        Format::Json => (json::parse(text)?, 0),
    };
    match value {
        Value::Map(entries) => Ok((entries, comments)),
        Value::List(_) | Value::Scalar(_) => Err(Flaw::Unsupported {
            what: "a file that is no mapping at its top is".into(),
            remedy: "put its content below a key, as sops demands",
        }),
    }
}

/// As [`parse`], in order.
pub(super) fn decrypt(bytes: &[u8], format: Format, keys: &KeyRing) -> Result<Value, Flaw> {
    let (mut entries, _) = members(bytes, format)?;
    let at = entries.iter().position(|entry| entry.key == SECTION).ok_or(Flaw::NotEncrypted)?;
    let metadata = Metadata::read(&entries.remove(at).value)?;
    let key = keys.open(&metadata)?;
    let expected =
        key.open(&metadata.mac, &metadata.last_modified).map_err(|problem| Flaw::metadata("mac", problem))?;
    let mut walk = Walk {
        key: &key,
        place: Place::top(&metadata.selection),
        mac: Mac::new(metadata.mac_only_encrypted),
    };
    let document = walk.mapping(entries)?;
    let computed = walk.mac.finish();
    match expected {
        Opened::Scalar(Scalar::Text(expected)) if expected.expose() == computed.as_bytes() => Ok(document),
        Opened::Scalar(_) | Opened::Comment => Err(Flaw::Mac),
    }
}

struct Walk<'a> {
    key: &'a DataKey,
    place: Place<'a>,
    mac: Mac,
}

impl Walk<'_> {
    fn mapping(&mut self, entries: Vec<Entry>) -> Result<Value, Flaw> {
        let mut plain = Vec::with_capacity(entries.len());
        for Entry { key, merge, value } in entries {
            self.place.enter(&key);
            let value = self.value(value)?.ok_or_else(|| self.flaw("is a comment where a value belongs"))?;
            self.place.leave();
            plain.push(Entry { key, merge, value });
        }
        Ok(Value::Map(plain))
    }

    /// Nothing for a comment, which sops keeps among the elements of an encrypted list.
    fn value(&mut self, value: Value) -> Result<Option<Value>, Flaw> {
        Ok(Some(match value {
            Value::Map(entries) => self.mapping(entries)?,
            Value::List(values) => {
                let mut plain = Vec::with_capacity(values.len());
                for value in values {
                    plain.extend(self.value(value)?);
                }
                Value::List(plain)
            }
            Value::Scalar(Scalar::Null) => Value::Scalar(Scalar::Null),
            Value::Scalar(scalar) => {
                let encrypted = self.place.is_encrypted();
                let scalar = if encrypted {
                    match self.open(&scalar)? {
                        Opened::Scalar(scalar) => scalar,
                        Opened::Comment => return Ok(None),
                    }
                } else {
                    scalar
                };
                self.mac.add(&scalar, encrypted);
                Value::Scalar(scalar)
            }
        }))
    }

    fn open(&self, scalar: &Scalar) -> Result<Opened, Flaw> {
        match scalar.text() {
            Some(text) if text.is_empty() || text.starts_with("ENC[") => {
                self.key.open(text, self.place.additional()).map_err(|problem| self.flaw(problem))
            }
            Some(_) | None => Err(Flaw::Plain { path: self.place.name() }),
        }
    }

    fn flaw(&self, problem: &'static str) -> Flaw {
        Flaw::Value { path: self.place.name(), problem }
    }
}
