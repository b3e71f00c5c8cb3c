//! One part of a secret.

use crate::Error;
use crate::request::{Field, Reference};
use crate::secret::Node;

/// How many names an error lists.
const LISTED: usize = 20;
/// How many characters of a name an error shows.
const SHOWN: usize = 64;

/// The part of `document` that `reference` names.
pub(super) fn select<'d>(document: &'d Node, reference: &Reference) -> Result<&'d Node, Error> {
    let not_found = |problem| Error::NotFound { reference: reference.to_string(), problem };
    let node = match &reference.field {
        None => document,
        Some(Field::Key(key)) => member(document, key)
            .ok_or_else(|| not_found(format!("no such field; {}", contents(document))))?,
        Some(Field::Pointer(tokens)) => {
            let mut node = document;
            for (depth, token) in tokens.iter().enumerate() {
                node = member(node, token).ok_or_else(|| {
                    let above = Field::Pointer(tokens.iter().take(depth).cloned().collect());
                    let place = if depth == 0 { "the secret".to_owned() } else { above.to_string() };
                    not_found(format!("no such field; {place} {}", contents(node).trim_start_matches("it ")))
                })?;
            }
            node
        }
    };
    if *node == Node::Null {
        return Err(not_found("the value there is null; set one in the store".to_owned()));
    }
    Ok(node)
}

/// A member by its name, or an element by its index (RFC 6901 §4).
pub(super) fn member<'n>(node: &'n Node, token: &str) -> Option<&'n Node> {
    match node {
        Node::Map(members) => members.get(token),
        Node::List(elements) => {
            let canonical = token == "0" || !token.starts_with(['0', '+']);
            token.parse::<usize>().ok().filter(|_| canonical).and_then(|index| elements.get(index))
        }
        Node::Text(_) | Node::Number(_) | Node::Bool(_) | Node::Null => None,
    }
}

/// What is in a node, in names and numbers, never in values.
pub(super) fn contents(node: &Node) -> String {
    match node {
        Node::Map(members) if members.is_empty() => "it has no fields".to_owned(),
        Node::Map(members) => {
            let names: Vec<String> = members.keys().take(LISTED).map(|name| shown(name)).collect();
            let more = members.len() - names.len();
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            format!("it has {}{more}", names.join(", "))
        }
        Node::List(elements) => format!("it is a list of {}", elements.len()),
        Node::Text(_) => "it is a text without fields".to_owned(),
        Node::Number(_) => "it is a number without fields".to_owned(),
        Node::Bool(_) => "it is a boolean without fields".to_owned(),
        Node::Null => "it is null".to_owned(),
    }
}

/// A name as a message can bear it.
pub(super) fn shown(name: &str) -> String {
    let end = if name.chars().count() > SHOWN { "…" } else { "" };
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(SHOWN).chain(end.chars()).collect()
}
