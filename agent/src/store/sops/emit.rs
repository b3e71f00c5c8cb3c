//! A tree as YAML or JSON.

use std::io::{self, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::format::Format;
use super::scalar;
use super::tree::{Entry, Scalar, Value};

/// Plain words that some reader of YAML 1.1 takes for a boolean or null.
const WORDS: [&str; 10] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"];

/// Writes `document` to `out`, piece by piece: a buffer of the whole would be one more copy of what it holds.
pub(super) fn write(document: &Value, format: Format, out: &mut impl Write) -> io::Result<()> {
    match format {
        Format::Yaml => match document {
            Value::Map(entries) if !entries.is_empty() => mapping(entries, 0, out),
            Value::Map(_) | Value::List(_) | Value::Scalar(_) => {
                flat(document, out)?;
                writeln!(out)
            }
        },
        Format::Json => {
            json(document, 0, out)?;
            writeln!(out)
        }
    }
}

fn indent(depth: usize, out: &mut impl Write) -> io::Result<()> {
    (0..depth).try_for_each(|_| out.write_all(b"    "))
}

fn mapping(entries: &[Entry], depth: usize, out: &mut impl Write) -> io::Result<()> {
    for Entry { key, merge, value } in entries {
        indent(depth, out)?;
        if *merge {
            out.write_all(b"!!merge <<")?;
        } else {
            yaml_text(key, out)?;
        }
        out.write_all(b":")?;
        below(value, depth, out)?;
    }
    Ok(())
}

/// What follows `key:` or `-`, with its line end.
fn below(value: &Value, depth: usize, out: &mut impl Write) -> io::Result<()> {
    match value {
        Value::Map(entries) if !entries.is_empty() => {
            writeln!(out)?;
            mapping(entries, depth + 1, out)
        }
        Value::List(values) if !values.is_empty() => {
            writeln!(out)?;
            values.iter().try_for_each(|value| {
                indent(depth + 1, out)?;
                out.write_all(b"-")?;
                below(value, depth + 1, out)
            })
        }
        Value::Scalar(scalar) if scalar.text().is_some_and(is_block) => {
            writeln!(out, " |")?;
            scalar.text().unwrap_or_default().lines().try_for_each(|line| {
                indent(depth + 1, out)?;
                writeln!(out, "{line}")
            })
        }
        Value::Map(_) | Value::List(_) | Value::Scalar(_) => {
            out.write_all(b" ")?;
            flat(value, out)?;
            writeln!(out)
        }
    }
}

/// Whether a text can stand as a literal block as it is: lines of printable ASCII, none empty or indented, one line
/// end at the end.
fn is_block(text: &str) -> bool {
    text.strip_suffix('\n').is_some_and(|body| {
        body.contains('\n')
            && body.split('\n').all(|line| {
                line.starts_with(|c: char| c.is_ascii_graphic())
                    && line.bytes().all(|b| (b' '..=b'~').contains(&b))
            })
    })
}

fn flat(value: &Value, out: &mut impl Write) -> io::Result<()> {
    let scalar = match value {
        Value::Map(_) => return out.write_all(b"{}"),
        Value::List(_) => return out.write_all(b"[]"),
        Value::Scalar(scalar) => scalar,
    };
    match scalar {
        Scalar::Null => out.write_all(b"null"),
        Scalar::Bool(value) => write!(out, "{value}"),
        Scalar::Int(digits) | Scalar::Time(digits) => out.write_all(digits.expose()),
        Scalar::Float(digits) => match digits.expose() {
            b"NaN" => out.write_all(b".nan"),
            b"+Inf" => out.write_all(b".inf"),
            b"-Inf" => out.write_all(b"-.inf"),
            // A float must not come back as an int, which has a narrower range.
            whole if !whole.contains(&b'.') => {
                out.write_all(whole)?;
                out.write_all(b".0")
            }
            digits => out.write_all(digits),
        },
        Scalar::Text(secret) => match scalar.text() {
            Some(text) => yaml_text(text, out),
            None => write!(out, "!!binary {}", BASE64_STANDARD.encode(secret.expose())),
        },
    }
}

fn yaml_text(text: &str, out: &mut impl Write) -> io::Result<()> {
    let simple = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b'-'))
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
        && scalar::plain(text).is_ok_and(|scalar| scalar.text() == Some(text));
    let sealed = text.starts_with("ENC[AES256_GCM,")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"[]_,:+/=".contains(&b));
    if simple || sealed { out.write_all(text.as_bytes()) } else { quoted(text, out) }
}

/// A string of JSON, which is one of YAML too, since what YAML does not print is escaped.
fn quoted(text: &str, out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"\"")?;
    for c in text.chars() {
        match c {
            '"' => out.write_all(b"\\\"")?,
            '\\' => out.write_all(b"\\\\")?,
            '\n' => out.write_all(b"\\n")?,
            '\t' => out.write_all(b"\\t")?,
            '\r' => out.write_all(b"\\r")?,
            '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                write!(out, "\\u{:04x}", u32::from(c))?;
            }
            c => out.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())?,
        }
    }
    out.write_all(b"\"")
}

fn json(value: &Value, depth: usize, out: &mut impl Write) -> io::Result<()> {
    match value {
        Value::Map(entries) if !entries.is_empty() => {
            json_members(entries, depth, (b"{", b"}"), out, |entry, out| {
                quoted(&entry.key, out)?;
                out.write_all(b": ")?;
                json(&entry.value, depth + 1, out)
            })
        }
        Value::List(values) if !values.is_empty() => {
            json_members(values, depth, (b"[", b"]"), out, |value, out| json(value, depth + 1, out))
        }
        Value::Scalar(scalar @ Scalar::Text(_)) => match scalar.text() {
            Some(text) => quoted(text, out),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a value holds bytes that JSON has no notation for",
            )),
        },
        Value::Scalar(Scalar::Time(time)) => {
            quoted(std::str::from_utf8(time.expose()).unwrap_or_default(), out)
        }
        Value::Scalar(Scalar::Float(digits)) if matches!(digits.expose(), b"NaN" | b"+Inf" | b"-Inf") => {
            quoted(std::str::from_utf8(digits.expose()).unwrap_or_default(), out)
        }
        Value::Scalar(Scalar::Float(digits)) => out.write_all(digits.expose()),
        Value::Map(_) | Value::List(_) | Value::Scalar(_) => flat(value, out),
    }
}

fn json_members<T, W: Write>(
    members: &[T],
    depth: usize,
    (open, close): (&[u8], &[u8]),
    out: &mut W,
    mut write: impl FnMut(&T, &mut W) -> io::Result<()>,
) -> io::Result<()> {
    out.write_all(open)?;
    for (at, member) in members.iter().enumerate() {
        out.write_all(if at == 0 { b"\n" } else { b",\n" })?;
        indent(depth + 1, out)?;
        write(member, out)?;
    }
    writeln!(out)?;
    indent(depth, out)?;
    out.write_all(close)
}
