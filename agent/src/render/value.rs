//! Secrets as a template sees them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};

use super::buffer::Buffer;
use super::{field, json};
use crate::secret::Node;

/// A lookup that found nothing, for the message if that turns out to be an error.
#[derive(Debug, Clone)]
pub(super) struct Miss {
    /// The reference, without options.
    pub(super) reference: String,
    /// What was looked for. May be a secret, if the template computed it.
    pub(super) key: String,
    /// What is there instead, in names.
    pub(super) contents: String,
}

/// The latest [`Miss`] of a rendering.
pub(super) type Misses = Arc<Mutex<Option<Miss>>>;

/// A map or list of a secret.
pub(super) struct Document {
    root: Arc<Node>,
    /// From the root to this part.
    path: Vec<String>,
    /// The reference, for messages.
    reference: Arc<str>,
    misses: Misses,
    /// Parts already made: a template that asks a thousand times for a text gets one copy of it.
    made: Mutex<HashMap<String, Value>>,
    /// The names of a map's members, once somebody has asked.
    names: OnceLock<Vec<Value>>,
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Document")
    }
}

/// The value of the part of `root` at `path`; none for null and for what is not there.
pub(super) fn value(
    root: &Arc<Node>,
    path: Vec<String>,
    reference: &Arc<str>,
    misses: &Misses,
) -> Option<Value> {
    match walk(root, &path)? {
        Node::Map(_) | Node::List(_) => Some(Value::from_object(Document {
            root: Arc::clone(root),
            path,
            reference: Arc::clone(reference),
            misses: Arc::clone(misses),
            made: Mutex::default(),
            names: OnceLock::new(),
        })),
        Node::Text(text) => Some(text_value(text.expose())),
        Node::Number(digits) => {
            let digits = std::str::from_utf8(digits.expose()).unwrap_or_default();
            // Only what comes out with the same digits is a number to the engine.
            let number = digits.parse::<i64>().ok().filter(|number| number.to_string() == digits);
            Some(number.map_or_else(|| Value::from(digits), Value::from))
        }
        Node::Bool(value) => Some(Value::from(*value)),
        Node::Null => None,
    }
}

/// A text, or bytes if they are none.
pub(super) fn text_value(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| Value::from_bytes(bytes.to_vec()), Value::from)
}

fn walk<'n>(root: &'n Node, path: &[String]) -> Option<&'n Node> {
    path.iter().try_fold(root, |node, token| field::member(node, token))
}

impl Document {
    pub(super) fn node(&self) -> Option<&Node> {
        walk(&self.root, &self.path)
    }
}

impl Object for Document {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        match self.node() {
            Some(Node::List(_)) => ObjectRepr::Seq,
            Some(Node::Map(_) | Node::Text(_) | Node::Number(_) | Node::Bool(_) | Node::Null) | None => {
                ObjectRepr::Map
            }
        }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        // Members go by text, elements by number; both are the tokens of a path.
        let token = match (key.as_str(), key.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(index)) => index.to_string(),
            (None, None) => return None,
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = made.get(&token) {
            return Some(value.clone());
        }
        let mut path = self.path.clone();
        path.push(token.clone());
        let found = value(&self.root, path, &self.reference, &self.misses);
        if let Some(value) = &found {
            made.insert(token, value.clone());
        } else {
            let miss = Miss {
                reference: self.reference.to_string(),
                key: token,
                contents: self.node().map(field::contents).unwrap_or_default(),
            };
            *self.misses.lock().unwrap_or_else(PoisonError::into_inner) = Some(miss);
        }
        found
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.node() {
            // One name at a time: the engine asks fuel for those it takes.
            Some(Node::Map(members)) => {
                self.names.get_or_init(|| members.keys().map(|name| Value::from(name.as_str())).collect());
                let document = Arc::clone(self);
                let name = move |place| document.names.get().and_then(|names| names.get(place)).cloned();
                Enumerator::Iter(Box::new(
                    (0..members.len()).map(move |place| name(place).unwrap_or_default()),
                ))
            }
            Some(Node::List(elements)) => Enumerator::Seq(elements.len()),
            Some(Node::Text(_) | Node::Number(_) | Node::Bool(_) | Node::Null) | None => Enumerator::Empty,
        }
    }

    /// For filters and operators that make a text of anything.
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = Buffer::up_to(usize::MAX);
        if self.node().is_some_and(|node| json::write(node, &mut buffer).is_ok()) {
            f.write_str(&String::from_utf8_lossy(buffer.into_secret().expose()))
        } else {
            // An error here would be a panic in the engine.
            f.write_str("{}")
        }
    }
}

/// Stands for a secret that is not fetched yet: has every field, and each is another of these.
#[derive(Debug)]
pub(super) struct Placeholder;

impl Object for Placeholder {
    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::from_object(Self))
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
