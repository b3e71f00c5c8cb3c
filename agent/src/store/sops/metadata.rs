//! The `sops` section of a file: to whom the data key is encrypted, what is encrypted, and the MAC.

use std::collections::BTreeSet;

use super::flaw::Flaw;
use super::selection::Selection;
use super::time;
use super::tree::{Entry, Scalar, Value};

/// Key types of sops besides age.
const OTHER_KEYS: [&str; 6] = ["kms", "gcp_kms", "hckms", "azure_kv", "hc_vault", "pgp"];

/// The section, read.
#[derive(Debug)]
pub(super) struct Metadata {
    /// One group: any key in it opens the file. Several: each holds a share of the data key.
    pub(super) groups: Vec<Group>,
    /// How many groups are needed, where there are several.
    pub(super) threshold: usize,
    /// RFC 3339, to the second: the MAC is bound to it.
    pub(super) last_modified: String,
    /// The encrypted MAC.
    pub(super) mac: String,
    pub(super) selection: Selection,
    /// Whether the MAC leaves out what is not encrypted.
    pub(super) mac_only_encrypted: bool,
}

/// Keys of which each opens the same thing.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) age: Vec<Wrapped>,
    /// Types of the keys that are none of ours.
    pub(super) others: BTreeSet<&'static str>,
}

/// The data key (or a share of it), encrypted to one age recipient.
#[derive(Debug)]
pub(super) struct Wrapped {
    pub(super) recipient: String,
    /// An armored age file.
    pub(super) armored: String,
}

impl Metadata {
    pub(super) fn read(section: &Value) -> Result<Self, Flaw> {
        let Value::Map(members) = section else {
            return Err(Flaw::Unsupported {
                what: "a sops section that is no mapping is".into(),
                remedy: "it is what sops adds to a file; restore it",
            });
        };
        let last_modified = text(members, "lastmodified")?
            .and_then(time::to_the_second)
            .ok_or_else(|| Flaw::metadata("lastmodified", "is missing or no time (RFC 3339)"))?;
        let mac = text(members, "mac")?.ok_or_else(|| Flaw::metadata("mac", "is missing"))?.to_owned();
        let groups = groups(members)?;
        let threshold = match find(members, "shamir_threshold") {
            None => 0,
            Some(Value::Scalar(Scalar::Int(digits))) => std::str::from_utf8(digits.expose())
                .ok()
                .and_then(|digits| digits.parse().ok())
                .ok_or_else(|| Flaw::metadata("shamir_threshold", "is no number of groups"))?,
            Some(_) => return Err(Flaw::metadata("shamir_threshold", "is no number of groups")),
        };
        Ok(Self {
            // No secret has a single share, and sops leaves the number out when it needs all.
            threshold: if threshold == 0 { groups.len() } else { threshold.max(groups.len().min(2)) },
            groups,
            last_modified,
            mac,
            selection: Selection::read(|key| text(members, key))?,
            mac_only_encrypted: match find(members, "mac_only_encrypted") {
                None | Some(Value::Scalar(Scalar::Null | Scalar::Bool(false))) => false,
                Some(Value::Scalar(Scalar::Bool(true))) => true,
                Some(_) => return Err(Flaw::metadata("mac_only_encrypted", "is neither true nor false")),
            },
        })
    }
}

/// As sops does it: keys right in the section are the one group, and `key_groups` counts only without them.
fn groups(members: &[Entry]) -> Result<Vec<Group>, Flaw> {
    let own = group(members)?;
    if !own.age.is_empty() || !own.others.is_empty() {
        return Ok(vec![own]);
    }
    let groups = list(members, "key_groups")?
        .iter()
        .map(|member| match member {
            Value::Map(members) => group(members),
            Value::List(_) | Value::Scalar(_) => {
                Err(Flaw::metadata("key_groups", "holds something that is no group"))
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    if groups.is_empty() {
        return Err(Flaw::metadata("age", "is missing: the file is encrypted to nobody"));
    }
    Ok(groups)
}

fn group(members: &[Entry]) -> Result<Group, Flaw> {
    let age = list(members, "age")?
        .iter()
        .map(|member| {
            let Value::Map(members) = member else {
                return Err(Flaw::metadata("age", "holds something that is no recipient"));
            };
            let part = |key| {
                text(members, key)?.ok_or_else(|| Flaw::metadata("age", format!("lacks a member {key}")))
            };
            Ok(Wrapped { recipient: part("recipient")?.to_owned(), armored: part("enc")?.to_owned() })
        })
        .collect::<Result<_, _>>()?;
    let mut others = BTreeSet::new();
    for key in OTHER_KEYS {
        if !list(members, key)?.is_empty() {
            others.insert(key);
        }
    }
    Ok(Group { age, others })
}

fn find<'a>(members: &'a [Entry], key: &str) -> Option<&'a Value> {
    members.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
}

/// A text; none where it is absent, null or empty.
fn text<'a>(members: &'a [Entry], key: &'static str) -> Result<Option<&'a str>, Flaw> {
    match find(members, key) {
        None | Some(Value::Scalar(Scalar::Null)) => Ok(None),
        Some(Value::Scalar(scalar @ (Scalar::Text(_) | Scalar::Time(_)))) => {
            let text = scalar.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok());
            text.map(|text| Some(text).filter(|text| !text.is_empty()))
                .ok_or_else(|| Flaw::metadata(key, "is no text"))
        }
        Some(_) => Err(Flaw::metadata(key, "is no text")),
    }
}

/// The elements of a list; none where it is absent or null.
fn list<'a>(members: &'a [Entry], key: &'static str) -> Result<&'a [Value], Flaw> {
    match find(members, key) {
        None | Some(Value::Scalar(Scalar::Null)) => Ok(&[]),
        Some(Value::List(values)) => Ok(values),
        Some(_) => Err(Flaw::metadata(key, "is no list")),
    }
}
