//! JSON into a tree in order.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::flaw::{Flaw, MAX_DEPTH, MAX_KEY_BYTES};
use super::format::Format;
use super::tree::{Entry, Scalar, Value};

/// Reads the one value in `text`.
pub(super) fn parse(text: &str) -> Result<Value, Flaw> {
    let flaw = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_str(text);
    Member { depth: 0, flaw: &flaw }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        // The parser's own words may quote the text.
        .map_err(|error| {
            flaw.take().unwrap_or(Flaw::Syntax {
                format: Format::Json,
                line: error.line(),
                column: error.column(),
            })
        })
}

/// One value at some depth. What serde's error cannot carry is left in `flaw`.
#[derive(Clone, Copy)]
struct Member<'a> {
    depth: usize,
    flaw: &'a RefCell<Option<Flaw>>,
}

impl Member<'_> {
    fn fail<E: serde::de::Error>(&self, flaw: Flaw) -> E {
        *self.flaw.borrow_mut() = Some(flaw);
        E::custom("refused")
    }

    fn below<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(self.fail(Flaw::TooDeep));
        }
        Ok(Self { depth: self.depth + 1, ..*self })
    }
}

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::from_int(value)))
    }

    /// What does not fit 64 bits with a sign is a float to sops.
    #[expect(clippy::cast_precision_loss, reason = "that is what sops does with it")]
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Scalar(match i64::try_from(value) {
            Ok(value) => Scalar::from_int(value),
            Err(_) => Scalar::from_float(value as f64),
        }))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::from_float(value)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::from_text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut values = Vec::new();
        while let Some(value) = access.next_element_seed(below)? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut entries = Vec::new();
        let mut keys = HashSet::new();
        while let Some(key) = access.next_key::<String>()? {
            if key.len() > MAX_KEY_BYTES {
                return Err(self.fail(Flaw::LongKey));
            }
            if !keys.insert(key.clone()) {
                return Err(self.fail(Flaw::DuplicateKey { key }));
            }
            entries.push(Entry { key, merge: false, value: access.next_value_seed(below)? });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_numbers() {
        let Value::Map(entries) =
            parse(r#"{"z":1,"a":-1.5e3,"m":18446744073709551615,"b":9007199254740993,"c":1.0}"#).unwrap()
        else {
            panic!()
        };
        let shown: Vec<_> = entries
            .iter()
            .map(|entry| {
                let Value::Scalar(scalar) = &entry.value else { panic!() };
                format!("{}={}", entry.key, std::str::from_utf8(scalar.bytes().unwrap()).unwrap())
            })
            .collect();
        assert_eq!(shown, ["z=1", "a=-1500", "m=18446744073709552000", "b=9007199254740993", "c=1"]);
    }

    #[test]
    fn what_is_refused() {
        let flaw = |text: &str| parse(text).map(|_| ()).unwrap_err();
        assert_eq!(flaw(r#"{"a":1,"a":2}"#), Flaw::DuplicateKey { key: "a".into() });
        assert_eq!(flaw(&format!("{}{}", "[".repeat(65), "]".repeat(65))), Flaw::TooDeep);
        assert_eq!(parse(&format!("{}{}", "[".repeat(64), "]".repeat(64))).map(|_| ()), Ok(()));
        assert_eq!(flaw(&format!(r#"{{"{}":1}}"#, "k".repeat(1025))), Flaw::LongKey);
        assert_eq!(flaw("{} {}"), Flaw::Syntax { format: Format::Json, line: 1, column: 4 });
        assert!(matches!(flaw("{\"a\":\n\"hunter2"), Flaw::Syntax { line: 2, .. }));
        assert!(matches!(flaw(""), Flaw::Syntax { .. }));
    }
}
