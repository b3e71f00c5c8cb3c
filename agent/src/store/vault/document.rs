//! JSON from the server into secrets: every leaf is copied once, into memory that is overwritten.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::value::RawValue;

use crate::secret::{Node, Secret};

/// Deepest nesting of a secret.
const MAX_DEPTH: usize = 32;
/// Bytes of a document's hash that make its version.
const VERSION_BYTES: usize = 16;

/// Why a document is none. Carries nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    /// Not JSON.
    #[error("holds something that is no JSON")]
    Syntax,
    /// Nested too deep.
    #[error("is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

/// The tree in `raw`. Numbers keep their very digits.
pub(super) fn parse(raw: &RawValue) -> Result<Node, Flaw> {
    node(raw.get(), MAX_DEPTH)
}

/// A level at a time: a value below is a piece of the text until its own turn. With the depth bounded, no byte is
/// looked at more often than that.
fn node(text: &str, depth: usize) -> Result<Node, Flaw> {
    let below = depth.checked_sub(1).ok_or(Flaw::TooDeep);
    let syntax = |_| Flaw::Syntax;
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let below = below?;
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(syntax)?;
            let members = members.into_iter().map(|(name, raw)| Ok((name, node(raw.get(), below)?)));
            Node::Map(members.collect::<Result<_, Flaw>>()?)
        }
        Some(b'[') => {
            let below = below?;
            let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(syntax)?;
            Node::List(elements.into_iter().map(|raw| node(raw.get(), below)).collect::<Result<_, _>>()?)
        }
        Some(b'"') => Node::Text(Secret::from(serde_json::from_str::<String>(text).map_err(syntax)?)),
        Some(b't') => Node::Bool(true),
        Some(b'f') => Node::Bool(false),
        Some(b'n') => Node::Null,
        Some(_) => Node::Number(Secret::from(text.to_owned())),
        None => return Err(Flaw::Syntax),
    })
}

/// Makes versions of documents: equal documents have equal versions. A key drawn at start keeps the version from being
/// a hash that guesses could be held against.
pub(super) struct Versions([u8; 32]);

impl Versions {
    pub(super) fn new() -> Self {
        Self(rand::random())
    }

    pub(super) fn of(&self, document: &Node) -> String {
        let mut context = Context::new(&SHA256);
        context.update(&self.0);
        feed(&mut context, document);
        let hash = context.finish();
        let prefix = hash.as_ref().first_chunk::<VERSION_BYTES>().copied().unwrap_or_default();
        format!("{:032x}", u128::from_be_bytes(prefix))
    }
}

fn feed(context: &mut Context, node: &Node) {
    let counted = |context: &mut Context, kind: u8, count: usize| {
        context.update(&[kind]);
        context.update(&count.to_be_bytes());
    };
    match node {
        Node::Map(members) => {
            counted(context, b'{', members.len());
            for (name, member) in members {
                counted(context, b'k', name.len());
                context.update(name.as_bytes());
                feed(context, member);
            }
        }
        Node::List(elements) => {
            counted(context, b'[', elements.len());
            for element in elements {
                feed(context, element);
            }
        }
        Node::Text(text) => {
            counted(context, b'"', text.len());
            context.update(text.expose());
        }
        Node::Number(digits) => {
            counted(context, b'#', digits.len());
            context.update(digits.expose());
        }
        Node::Bool(value) => counted(context, b'b', usize::from(*value)),
        Node::Null => context.update(b"0"),
    }
}

/// A member's text, where it is one.
pub(super) fn text<'n>(document: &'n Node, name: &str) -> Option<&'n Secret> {
    match document {
        Node::Map(members) => match members.get(name) {
            Some(Node::Text(text)) => Some(text),
            _ => None,
        },
        Node::List(_) | Node::Text(_) | Node::Number(_) | Node::Bool(_) | Node::Null => None,
    }
}

/// A member's number, where it is one that counts something.
pub(super) fn number(document: &Node, name: &str) -> Option<u64> {
    match document {
        Node::Map(members) => match members.get(name) {
            Some(Node::Number(digits)) => std::str::from_utf8(digits.expose()).ok()?.parse().ok(),
            _ => None,
        },
        Node::List(_) | Node::Text(_) | Node::Number(_) | Node::Bool(_) | Node::Null => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Node, Flaw> {
        parse(serde_json::from_str(text).unwrap())
    }

    fn secret(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }

    #[test]
    fn every_kind_of_value() {
        let document =
            read(r#" {"t":"a\n\u00e9","n":1.10e3,"i":-7,"b":true,"z":null,"l":[false,{}],"t":"last"}"#)
                .unwrap();
        let members = [
            ("t".to_owned(), Node::Text(secret("last"))),
            ("n".to_owned(), Node::Number(secret("1.10e3"))),
            ("i".to_owned(), Node::Number(secret("-7"))),
            ("b".to_owned(), Node::Bool(true)),
            ("z".to_owned(), Node::Null),
            ("l".to_owned(), Node::List(vec![Node::Bool(false), Node::Map(BTreeMap::new())])),
        ];
        assert_eq!(document, Node::Map(members.into()));
        assert_eq!(read(r#""a\n\u00e9\"""#).unwrap(), Node::Text(secret("a\né\"")));
        assert_eq!(text(&document, "t").map(Secret::expose), Some(&b"last"[..]));
        assert_eq!((text(&document, "n"), number(&document, "i")), (None, None));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(read(&nested(MAX_DEPTH + 1)), Err(Flaw::TooDeep));
    }

    #[test]
    fn versions_tell_documents_apart() {
        let versions = Versions::new();
        let of = |text: &str| versions.of(&read(text).unwrap());
        assert_eq!(of(r#"{"a":1,"b":2}"#), of(r#"{"b": 2, "a": 1}"#));
        let all = [
            r#"{"a":1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":[1]}"#,
            r#"{"a":null}"#,
            r#"{"a":true}"#,
            r#"{"a":false}"#,
            r#"{"a1":""}"#,
            "[1,[2]]",
            "[[1],2]",
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().map(|text| of(text)).collect();
        assert_eq!(distinct.len(), all.len());
        assert_ne!(of("1"), Versions::new().of(&read("1").unwrap()), "no two processes say the same");
    }

    proptest! {
        #[test]
        fn another_writer_s_json_is_read(string in ".{0,40}", key in ".{0,10}", number in any::<i64>()) {
            let text = serde_json::json!({ &key: [&string, number] }).to_string();
            let list = Node::List(vec![Node::Text(secret(&string)), Node::Number(secret(&number.to_string()))]);
            prop_assert_eq!(read(&text).unwrap(), Node::Map([(key, list)].into()));
        }
    }
}
