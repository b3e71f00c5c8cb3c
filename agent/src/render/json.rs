//! Compact JSON (RFC 8259) of a secret, in memory that is overwritten.

use super::buffer::Buffer;
use crate::secret::{Node, Secret};

/// Why there is no JSON of a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoJson {
    /// A text is not UTF-8.
    NotUtf8,
    /// The buffer is full.
    TooLong,
}

impl From<std::fmt::Error> for NoJson {
    fn from(_: std::fmt::Error) -> Self {
        Self::TooLong
    }
}

/// Writes `node`; members come in the order of their names, so equal secrets are equal bytes.
pub(super) fn write(node: &Node, into: &mut Buffer) -> Result<(), NoJson> {
    match node {
        Node::Map(members) => {
            for (place, (name, member)) in members.iter().enumerate() {
                into.push(if place == 0 { b"{" } else { b"," })?;
                write_text(name, into)?;
                into.push(b":")?;
                write(member, into)?;
            }
            into.push(if members.is_empty() { b"{}" } else { b"}" })?;
        }
        Node::List(elements) => {
            for (place, element) in elements.iter().enumerate() {
                into.push(if place == 0 { b"[" } else { b"," })?;
                write(element, into)?;
            }
            into.push(if elements.is_empty() { b"[]" } else { b"]" })?;
        }
        Node::Text(text) => write_text(utf8(text)?, into)?,
        Node::Number(digits) => into.push(digits.expose())?,
        Node::Bool(true) => into.push(b"true")?,
        Node::Bool(false) => into.push(b"false")?,
        Node::Null => into.push(b"null")?,
    }
    Ok(())
}

fn utf8(text: &Secret) -> Result<&str, NoJson> {
    std::str::from_utf8(text.expose()).map_err(|_| NoJson::NotUtf8)
}

/// Writes a string in quotes. Only what has to be escaped is (RFC 8259 §7).
pub(super) fn write_text(text: &str, into: &mut Buffer) -> Result<(), std::fmt::Error> {
    into.push(b"\"")?;
    let mut rest = text;
    while let Some(place) = rest.find(|c: char| c == '"' || c == '\\' || c < ' ') {
        let (plain, special) = rest.split_at(place);
        into.push(plain.as_bytes())?;
        let mut letters = special.chars();
        match letters.next() {
            Some('"') => into.push(b"\\\"")?,
            Some('\\') => into.push(b"\\\\")?,
            Some('\n') => into.push(b"\\n")?,
            Some('\r') => into.push(b"\\r")?,
            Some('\t') => into.push(b"\\t")?,
            Some(control) => into.push(format!("\\u{:04x}", u32::from(control)).as_bytes())?,
            None => {}
        }
        rest = letters.as_str();
    }
    into.push(rest.as_bytes())?;
    into.push(b"\"")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn json(node: &Node) -> Result<String, NoJson> {
        let mut buffer = Buffer::up_to(1 << 20);
        write(node, &mut buffer)?;
        Ok(String::from_utf8(buffer.into_secret().expose().to_vec()).unwrap())
    }

    fn text(text: &str) -> Node {
        Node::Text(Secret::from(text.to_owned()))
    }

    #[test]
    fn what_is_written() {
        let members = [
            ("z".to_owned(), Node::Null),
            ("a\"b".to_owned(), text("tab\t, line\n, \r \\ \" \u{1} \u{7f} é 🔑")),
            ("n".to_owned(), Node::Number(Secret::from("1.10e3".to_owned()))),
            ("l".to_owned(), Node::List(vec![Node::Bool(true), Node::Bool(false), Node::List(vec![])])),
            ("m".to_owned(), Node::Map(BTreeMap::new())),
        ];
        assert_eq!(
            json(&Node::Map(members.into())).unwrap(),
            "{\"a\\\"b\":\"tab\\t, line\\n, \\r \\\\ \\\" \\u0001 \u{7f} é 🔑\",\"l\":[true,false,[]],\"m\":{},\"n\":1.10e3,\"z\":null}"
        );
    }

    #[test]
    fn bytes_that_are_no_text_and_text_that_is_too_long() {
        assert_eq!(json(&Node::List(vec![Node::Text(Secret::new(vec![0xff]))])), Err(NoJson::NotUtf8));
        let mut small = Buffer::up_to(10);
        assert_eq!(write(&text("123456789"), &mut small), Err(NoJson::TooLong));
    }

    proptest! {
        #[test]
        fn another_reader_reads_the_same(string in ".{0,40}|[\\x00-\\x7f]{0,40}", key in ".{0,10}") {
            let node = Node::Map([(key.clone(), text(&string))].into());
            let read: serde_json::Value = serde_json::from_str(&json(&node).unwrap()).unwrap();
            prop_assert_eq!(read, serde_json::json!({ key: string }));
        }
    }
}
