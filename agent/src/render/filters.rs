//! The filters that the engine does not bring.

use base64::Engine as _;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

use super::buffer::Buffer;
use super::encoding::{BASE64, decode};
use super::json;
use super::value::{Document, text_value};

/// An error whose text is ours and holds no value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refusal(pub(super) String);

/// The engine's error for a [`Refusal`].
pub(super) fn refuse(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, "").with_source(Refusal(text.into()))
}

/// How deep a value is followed.
const MAX_DEPTH: usize = 64;

/// Adds them; what they write is at most `limit` bytes.
pub(super) fn add(environment: &mut Environment<'_>, limit: usize) {
    environment
        .add_filter("b64encode", |value: &Value| bytes(value, "b64encode").map(|bytes| BASE64.encode(bytes)));
    environment.add_filter("b64decode", |value: &Value| {
        decode(bytes(value, "b64decode")?.as_ref())
            .map(|decoded| text_value(decoded.expose()))
            .map_err(|place| refuse(format!("what b64decode is given is not base64 {place}")))
    });
    environment.add_filter("urlencode", |value: &Value| {
        bytes(value, "urlencode").map(|bytes| percent(bytes.as_ref()))
    });
    environment.add_filter("quote", |value: &Value| text(value, "quote").map(|text| shell(&text)));
    environment.add_filter("tojson", move |value: &Value| {
        let mut buffer = Buffer::up_to(limit);
        to_json(value, &mut buffer, MAX_DEPTH)?;
        Ok::<_, Error>(text_value(buffer.into_secret().expose()))
    });
}

/// The bytes of a scalar.
fn bytes<'v>(value: &'v Value, filter: &str) -> Result<std::borrow::Cow<'v, [u8]>, Error> {
    match (value.as_str(), value.as_bytes(), value.kind()) {
        (Some(text), _, _) => Ok(text.as_bytes().into()),
        (_, Some(bytes), _) => Ok(bytes.into()),
        (_, _, ValueKind::Bool) => Ok(if value.is_true() { &b"true"[..] } else { b"false" }.into()),
        (_, _, ValueKind::Number) => Ok(value.to_string().into_bytes().into()),
        (_, _, ValueKind::Undefined) => Err(ErrorKind::UndefinedError.into()),
        _ => Err(refuse(format!("{filter} takes a text; name a field, or put tojson before it"))),
    }
}

fn text<'v>(value: &'v Value, filter: &str) -> Result<std::borrow::Cow<'v, str>, Error> {
    match bytes(value, filter)? {
        std::borrow::Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Into::into).ok(),
        std::borrow::Cow::Owned(bytes) => String::from_utf8(bytes).map(Into::into).ok(),
    }
    .ok_or_else(|| refuse(format!("{filter} takes a text, and this is not utf-8; use b64encode")))
}

/// Percent-encoding of everything but unreserved characters (RFC 3986 §2.3).
fn percent(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(*byte));
        } else {
            text.push('%');
            text.extend(
                [byte >> 4, byte & 15]
                    .iter()
                    .filter_map(|digit| char::from_digit((*digit).into(), 16))
                    .map(|c| c.to_ascii_uppercase()),
            );
        }
    }
    text
}

/// One word for a POSIX shell.
fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn to_json(value: &Value, into: &mut Buffer, depth: usize) -> Result<(), Error> {
    let full = |_| refuse("tojson writes more than the volume holds");
    let depth = depth.checked_sub(1).ok_or_else(|| refuse("tojson is given something nested too deep"))?;
    if let Some(node) = value.downcast_object_ref::<Document>().and_then(Document::node) {
        return json::write(node, into).map_err(|no| match no {
            json::NoJson::NotUtf8 => {
                refuse("tojson is given bytes that are not utf-8; name the fields you need")
            }
            json::NoJson::TooLong => full(std::fmt::Error),
        });
    }
    match value.kind() {
        ValueKind::Undefined => Err(ErrorKind::UndefinedError.into()),
        ValueKind::None => into.push(b"null").map_err(full),
        ValueKind::Bool => into.push(if value.is_true() { b"true" } else { b"false" }).map_err(full),
        ValueKind::Number => into.push(value.to_string().as_bytes()).map_err(full),
        ValueKind::String => json::write_text(value.as_str().unwrap_or_default(), into).map_err(full),
        ValueKind::Bytes => Err(refuse("tojson is given bytes that are not utf-8; use b64encode")),
        ValueKind::Seq | ValueKind::Iterable => {
            into.push(b"[").map_err(full)?;
            for (place, element) in value.try_iter()?.enumerate() {
                into.push(if place == 0 { b"" } else { b"," }).map_err(full)?;
                to_json(&element, into, depth)?;
            }
            into.push(b"]").map_err(full)
        }
        ValueKind::Map => {
            into.push(b"{").map_err(full)?;
            for (place, key) in value.try_iter()?.enumerate() {
                let name =
                    key.as_str().ok_or_else(|| refuse("tojson is given a map whose keys are not texts"))?;
                into.push(if place == 0 { b"" } else { b"," }).map_err(full)?;
                json::write_text(name, into).map_err(full)?;
                into.push(b":").map_err(full)?;
                to_json(&value.get_item(&key)?, into, depth)?;
            }
            into.push(b"}").map_err(full)
        }
        ValueKind::Plain | ValueKind::Invalid | _ => Err(refuse("tojson cannot write this")),
    }
}
