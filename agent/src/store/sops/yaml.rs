//! YAML into a tree in order. The events come from granit-parser, as no serde value keeps order, styles and tags.

use std::borrow::Cow;
use std::collections::HashSet;

use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use super::flaw::{Flaw, MAX_DEPTH, MAX_KEY_BYTES};
use super::format::Format;
use super::scalar::{self, Meaningless};
use super::tree::{Entry, Scalar, Value};

/// A parsed text, and how many comments were passed over.
pub(super) struct Parsed {
    pub(super) value: Value,
    pub(super) comments: usize,
}

/// Reads the one document in `text`.
pub(super) fn parse(text: &str) -> Result<Parsed, Flaw> {
    let mut reader =
        Reader { parser: Parser::new_from_str_with_options(text, Options::default()), comments: 0 };
    let mut value = None;
    loop {
        match reader.next()? {
            (Event::StreamEnd, _) => break,
            (Event::DocumentStart(..), span) => {
                if value.is_some() {
                    return Err(unsupported(span, "a second document is", "keep one document in a file"));
                }
                let (event, span) = reader.next()?;
                value = Some(reader.node(event, span, 0)?);
            }
            _ => {}
        }
    }
    Ok(Parsed { value: value.unwrap_or(Value::Map(Vec::new())), comments: reader.comments })
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    comments: usize,
}

impl<'a> Reader<'a> {
    /// The next event that says something about the data.
    fn next(&mut self) -> Result<(Event<'a>, Span), Flaw> {
        loop {
            match self.parser.next_event() {
                None => return Ok((Event::StreamEnd, Span::default())),
                Some(Err(error)) => return Err(syntax(&error)),
                Some(Ok((Event::Comment(..), _))) => self.comments += 1,
                Some(Ok(event)) => return Ok(event),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Value, Flaw> {
        if depth > MAX_DEPTH {
            return Err(Flaw::TooDeep);
        }
        match event {
            Event::Scalar(text, style, _, tag) => {
                meaning(&text, style, tag.as_deref(), span).map(Value::Scalar)
            }
            Event::MappingStart(_, _, tag) => {
                expect_tag(tag.as_deref(), "map", span)?;
                self.mapping(depth).map(Value::Map)
            }
            Event::SequenceStart(_, _, tag) => {
                expect_tag(tag.as_deref(), "seq", span)?;
                let mut values = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => return Ok(Value::List(values)),
                        (event, span) => values.push(self.node(event, span, depth + 1)?),
                    }
                }
            }
            Event::Alias(_) => {
                Err(unsupported(span, "an alias is", "write the value out, as sops does when it encrypts"))
            }
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::Anchor(..)
            | Event::UnresolvedAlias(_)
            | Event::Comment(..)
            | Event::SequenceEnd
            | Event::MappingEnd
            | _ => Err(unexpected(span)),
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Vec<Entry>, Flaw> {
        let mut entries = Vec::new();
        let mut keys = HashSet::new();
        loop {
            let (key, merge) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(entries),
                (Event::Scalar(text, style, _, tag), span) => key(&text, style, tag.as_deref(), span)?,
                (Event::Alias(_), span) => {
                    return Err(unsupported(span, "an alias is", "write the key out"));
                }
                (_, span) => {
                    return Err(unsupported(span, "a mapping or list as a key is", "use text as keys"));
                }
            };
            if key.len() > MAX_KEY_BYTES {
                return Err(Flaw::LongKey);
            }
            if !keys.insert(key.clone()) {
                return Err(Flaw::DuplicateKey { key });
            }
            let (event, span) = self.next()?;
            entries.push(Entry { key, merge, value: self.node(event, span, depth + 1)? });
        }
    }
}

fn key(text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Result<(String, bool), Flaw> {
    let merge = match own(tag, span)?.as_deref() {
        Some(tag) => tag == "merge",
        None => text == "<<" && style == ScalarStyle::Plain,
    };
    if merge {
        return Ok((text.to_owned(), true));
    }
    let scalar = meaning(text, style, tag, span)?;
    match scalar.text() {
        Some(key) => Ok((key.to_owned(), false)),
        None => {
            Err(unsupported(span, "a key that is no text is", "put it in quotes; sops knows text keys only"))
        }
    }
}

fn meaning(text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Result<Scalar, Flaw> {
    match own(tag, span)?.as_deref() {
        None if style == ScalarStyle::Plain => scalar::plain(text),
        None => Ok(Scalar::from_text(text)),
        Some(tag) => scalar::tagged(tag, text),
    }
    .map_err(|why| match why {
        Meaningless::Beyond64Bits => {
            unsupported(span, "a whole number beyond 64 bits is", "put it in quotes to make it text")
        }
        Meaningless::AgainstTag => {
            unsupported(span, "a value that its tag does not fit is", "correct the tag")
        }
        Meaningless::UnknownTag => unknown_tag(span),
    })
}

/// The name of a tag of YAML's own (`!!name`); none for no tag or the non-specific `!`.
fn own(tag: Option<&Tag>, span: Span) -> Result<Option<Cow<'_, str>>, Flaw> {
    match tag {
        None => Ok(None),
        Some(tag) if format!("{}{}", tag.handle(), tag.suffix()) == "!" => Ok(None),
        Some(tag) => tag.suffix_in_namespace("tag:yaml.org,2002:").map(Some).ok_or_else(|| unknown_tag(span)),
    }
}

fn expect_tag(tag: Option<&Tag>, name: &str, span: Span) -> Result<(), Flaw> {
    match own(tag, span)? {
        Some(tag) if tag != name => Err(unknown_tag(span)),
        Some(_) | None => Ok(()),
    }
}

fn unknown_tag(span: Span) -> Flaw {
    unsupported(span, "this tag is", "leave it out; sops does not keep it")
}

fn unsupported(span: Span, what: &str, remedy: &'static str) -> Flaw {
    Flaw::Unsupported { what: format!("line {}: {what}", span.start.line()), remedy }
}

fn unexpected(span: Span) -> Flaw {
    Flaw::Syntax { format: Format::Yaml, line: span.start.line(), column: span.start.col() + 1 }
}

/// The scanner's own words may quote the text, which may be a secret that somebody forgot to encrypt.
fn syntax(error: &ScanError) -> Flaw {
    let at = error.marker();
    Flaw::Syntax { format: Format::Yaml, line: at.line(), column: at.col() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flaw(text: &str) -> String {
        match parse(text) {
            Ok(_) => "fine".into(),
            Err(flaw) => flaw.to_string(),
        }
    }

    #[test]
    fn order_and_comments() {
        let parsed = parse("# a\nz: 1 # b\na:\n  # c\n  - x\n").unwrap();
        assert_eq!(parsed.comments, 3);
        let Value::Map(entries) = parsed.value else { panic!() };
        assert_eq!(entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["z", "a"]);
    }

    #[test]
    fn merge_keys_are_told_from_text() {
        for (text, merge) in [("<<: {a: b}", true), ("!!merge <<: {a: b}", true), ("'<<': {a: b}", false)] {
            let Value::Map(entries) = parse(text).unwrap().value else { panic!() };
            assert_eq!(entries[0].merge, merge, "{text}");
        }
    }

    #[test]
    fn an_empty_text_is_an_empty_mapping() {
        assert!(matches!(parse("").unwrap().value, Value::Map(entries) if entries.is_empty()));
    }

    #[test]
    fn what_is_refused() {
        for (text, words) in [
            ("a: 1\na: 2\n", "\"a\" is twice"),
            ("a: {b: 1, 'b': 2}", "\"b\" is twice"),
            ("a: 1\n---\nb: 1\n", "line 2: a second document is not supported"),
            ("a: &x 1\nb: *x\n", "line 2: an alias is not supported"),
            ("a: &x [1]\nb: [*x, *x]\n", "an alias is not supported"),
            ("1: a\n", "a key that is no text"),
            ("true: a\n", "a key that is no text"),
            ("? [a]\n: b\n", "a mapping or list as a key"),
            ("a: !foo b\n", "this tag is not supported"),
            ("a: !!set {b: }\n", "this tag is not supported"),
            ("a: !!int b\n", "its tag does not fit"),
            ("a: 9223372036854775808\n", "beyond 64 bits"),
            ("a: b\n  c: d\n", "no valid YAML at line 2"),
            ("a: [b\n", "no valid YAML at line"),
            ("a: *nowhere\n", "no valid YAML at line 1"),
        ] {
            let flaw = flaw(text);
            assert!(flaw.contains(words), "{text:?}: {flaw}");
        }
    }

    #[test]
    fn keys_are_limited() {
        assert_eq!(flaw(&format!("{}: 1", "k".repeat(1024))), "fine");
        assert_eq!(parse(&format!("? {}\n: 1", "k".repeat(1025))).map(|_| ()), Err(Flaw::LongKey));
    }

    #[test]
    fn depth_is_limited() {
        let nested = |levels: usize| format!("a: {}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(flaw(&nested(64)), "fine");
        assert_eq!(parse(&nested(65)).map(|_| ()), Err(Flaw::TooDeep));
        assert!(parse(&nested(1_000_000)).is_err());
        let mut blocks = String::new();
        for level in 0..1000 {
            blocks.push_str(&" ".repeat(level));
            blocks.push_str("a:\n");
        }
        assert!(parse(&blocks).is_err());
    }

    #[test]
    fn an_error_quotes_nothing() {
        for text in ["a: [hunter2\n", "a: 'hunter2\n", "hunter2: *hunter2\n", "a: !<hunter2 x\n"] {
            let flaw = parse(text).map(|_| ()).unwrap_err();
            assert!(!format!("{flaw} {flaw:?}").contains("hunter2"), "{flaw}");
        }
    }
}
