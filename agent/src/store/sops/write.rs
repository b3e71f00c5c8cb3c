//! Writes a SOPS file, so that nobody needs sops to try things. Sops reads what is written here, and the other way
//! round.

use std::io::Write;
use std::time::SystemTime;

use age::armor::{ArmoredWriter, Format as Armor};
use age::x25519;
use zeroize::Zeroizing;

use super::cipher::{DataKey, KEY_BYTES};
use super::flaw::Flaw;
use super::format::Format;
use super::mac::Mac;
use super::place::Place;
use super::read::{SECTION, members};
use super::selection::Selection;
use super::tree::{Entry, Scalar, Value};

/// The release of sops whose format this is. Sops reads it to know about flaws of older ones.
const FORMAT_VERSION: &str = "3.13.3";

/// What was made of a plain file.
pub(super) struct Encrypted {
    pub(super) document: Value,
    /// Comments that were left out.
    pub(super) comments: usize,
}

/// Encrypts the plain file in `bytes` to `recipients`. Keys that end in `_unencrypted` stay plain, as with sops.
pub(super) fn encrypt(
    bytes: &[u8],
    format: Format,
    recipients: &[x25519::Recipient],
    modified: SystemTime,
) -> Result<Encrypted, Flaw> {
    let (entries, comments) = members(bytes, format)?;
    if entries.iter().any(|entry| entry.key == SECTION) {
        return Err(Flaw::Encrypted);
    }
    let mut data_key = Zeroizing::new([0; KEY_BYTES]);
    aws_lc_rs::rand::fill(data_key.as_mut()).map_err(|_| Flaw::NoRandomness)?;
    let key = DataKey::new(&data_key);
    let selection = Selection::default();
    let mut walk = Walk { key: &key, place: Place::top(&selection), mac: Mac::new(false) };
    let mut sealed = walk.mapping(entries)?;
    let modified = humantime::format_rfc3339_seconds(modified).to_string();
    let mac = key.seal(&Scalar::from_text(&walk.mac.finish()), &modified)?;
    let ages = recipients.iter().map(|recipient| wrap(&data_key, recipient)).collect::<Result<_, _>>()?;
    sealed.push(entry(
        SECTION,
        Value::Map(vec![
            entry("age", Value::List(ages)),
            entry("lastmodified", text(&modified)),
            entry("mac", text(&mac.unwrap_or_default())),
            entry("unencrypted_suffix", text("_unencrypted")),
            entry("version", text(FORMAT_VERSION)),
        ]),
    ));
    Ok(Encrypted { document: Value::Map(sealed), comments })
}

fn entry(key: &str, value: Value) -> Entry {
    Entry { key: key.to_owned(), merge: false, value }
}

fn text(text: &str) -> Value {
    Value::Scalar(Scalar::from_text(text))
}

/// The data key as an armored age file for `recipient`.
fn wrap(data_key: &[u8; KEY_BYTES], recipient: &x25519::Recipient) -> Result<Value, Flaw> {
    let armored = armored(data_key, recipient)
        .ok()
        .and_then(|armored| String::from_utf8(armored).ok())
        .ok_or_else(|| Flaw::metadata("age", "cannot be made for this recipient"))?;
    Ok(Value::Map(vec![entry("recipient", text(&recipient.to_string())), entry("enc", text(&armored))]))
}

fn armored(data_key: &[u8; KEY_BYTES], recipient: &x25519::Recipient) -> Result<Vec<u8>, age::EncryptError> {
    let encryptor = age::Encryptor::with_recipients(std::iter::once(recipient as &dyn age::Recipient))?;
    let mut writer = encryptor.wrap_output(ArmoredWriter::wrap_output(Vec::new(), Armor::AsciiArmor)?)?;
    writer.write_all(data_key)?;
    Ok(writer.finish()?.finish()?)
}

struct Walk<'a> {
    key: &'a DataKey,
    place: Place<'a>,
    mac: Mac,
}

impl Walk<'_> {
    fn mapping(&mut self, entries: Vec<Entry>) -> Result<Vec<Entry>, Flaw> {
        let mut sealed = Vec::with_capacity(entries.len() + 1);
        for Entry { key, merge, value } in entries {
            self.place.enter(&key);
            let value = self.value(value)?;
            self.place.leave();
            sealed.push(Entry { key, merge, value });
        }
        Ok(sealed)
    }

    fn value(&mut self, value: Value) -> Result<Value, Flaw> {
        Ok(match value {
            Value::Map(entries) => Value::Map(self.mapping(entries)?),
            Value::List(values) => {
                Value::List(values.into_iter().map(|value| self.value(value)).collect::<Result<_, _>>()?)
            }
            Value::Scalar(scalar) => {
                let encrypted = self.place.is_encrypted();
                self.mac.add(&scalar, encrypted);
                let sealed = if encrypted { self.key.seal(&scalar, self.place.additional())? } else { None };
                Value::Scalar(sealed.map_or(scalar, |sealed| Scalar::from_text(&sealed)))
            }
        })
    }
}
