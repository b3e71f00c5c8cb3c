//! A document in order, as sops sees it: the MAC runs over the values in the order in which they are written.

use std::collections::BTreeMap;

use crate::secret::{Node, Secret};

/// A value with what is in it.
#[derive(Debug)]
pub(super) enum Value {
    Map(Vec<Entry>),
    List(Vec<Value>),
    Scalar(Scalar),
}

/// A member of a mapping.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// A YAML merge key (`<<`): its value's members belong to the mapping around it.
    pub(super) merge: bool,
    pub(super) value: Value,
}

/// A leaf. Numbers and times are in the digits over which sops computes the MAC.
#[derive(Debug)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(Secret),
    Float(Secret),
    Text(Secret),
    Time(Secret),
}

impl Scalar {
    /// The bytes that sops encrypts and that go into the MAC; nothing for null, which sops leaves alone.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Null => None,
            // The first sops was written in Python.
            Self::Bool(true) => Some(b"True"),
            Self::Bool(false) => Some(b"False"),
            Self::Int(secret) | Self::Float(secret) | Self::Text(secret) | Self::Time(secret) => {
                Some(secret.expose())
            }
        }
    }

    /// The text of a string, if it is one in UTF-8.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(secret) => std::str::from_utf8(secret.expose()).ok(),
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Time(_) => None,
        }
    }

    pub(super) fn from_text(text: &str) -> Self {
        Self::Text(Secret::new(text.as_bytes().to_vec()))
    }

    /// A float in the notation of Go's `FormatFloat(x, 'f', -1, 64)`: shortest, without an exponent.
    pub(super) fn from_float(number: f64) -> Self {
        let digits = if number.is_nan() {
            "NaN".to_owned()
        } else if number.is_infinite() {
            if number > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() }
        } else {
            number.to_string()
        };
        Self::Float(Secret::from(digits))
    }

    pub(super) fn from_int(number: i64) -> Self {
        Self::Int(Secret::from(number.to_string()))
    }
}

impl Value {
    /// The document as it is handed to volumes: without order, merge keys resolved.
    pub(super) fn into_node(self) -> Node {
        match self {
            Self::Map(entries) => Node::Map(into_members(entries)),
            Self::List(values) => Node::List(values.into_iter().map(Self::into_node).collect()),
            Self::Scalar(scalar) => match scalar {
                Scalar::Null => Node::Null,
                Scalar::Bool(value) => Node::Bool(value),
                // NaN and the infinities are no numbers to JSON.
                Scalar::Float(digits)
                    if digits.expose().ends_with(b"N") || digits.expose().ends_with(b"Inf") =>
                {
                    Node::Text(digits)
                }
                Scalar::Int(digits) | Scalar::Float(digits) => Node::Number(digits),
                Scalar::Text(text) | Scalar::Time(text) => Node::Text(text),
            },
        }
    }
}

/// Own members win over merged ones, earlier merged ones over later (<https://yaml.org/type/merge.html>).
fn into_members(entries: Vec<Entry>) -> BTreeMap<String, Node> {
    let (merges, own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.merge);
    let mut members: BTreeMap<_, _> =
        own.into_iter().map(|entry| (entry.key, entry.value.into_node())).collect();
    for Entry { key, value, .. } in merges {
        let sources = match value {
            Value::Map(entries) => vec![Value::Map(entries)],
            Value::List(values) if values.iter().all(|value| matches!(value, Value::Map(_))) => values,
            other @ (Value::List(_) | Value::Scalar(_)) => {
                members.entry(key).or_insert_with(|| other.into_node());
                continue;
            }
        };
        for source in sources {
            if let Node::Map(more) = source.into_node() {
                for (key, node) in more {
                    members.entry(key).or_insert(node);
                }
            }
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_spelled_as_go_spells_them() {
        for (number, spelled) in [
            (1.0, "1"),
            (-0.0, "-0"),
            (1e21, "1000000000000000000000"),
            (1e-7, "0.0000001"),
            (1_234.5, "1234.5"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(Scalar::from_float(number).bytes(), Some(spelled.as_bytes()));
        }
    }

    #[test]
    fn own_members_win_over_merged_ones() {
        let entry = |key: &str, merge, value| Entry { key: key.into(), merge, value };
        let text = |text| Value::Scalar(Scalar::from_text(text));
        let value = Value::Map(vec![
            entry(
                "<<",
                true,
                Value::Map(vec![entry("a", false, text("merged")), entry("b", false, text("merged"))]),
            ),
            entry("a", false, text("own")),
        ]);
        let expected = Node::Map(BTreeMap::from([
            ("a".into(), Node::Text(Secret::new(b"own".to_vec()))),
            ("b".into(), Node::Text(Secret::new(b"merged".to_vec()))),
        ]));
        assert_eq!(value.into_node(), expected);
    }
}
