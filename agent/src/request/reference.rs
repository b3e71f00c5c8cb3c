//! `<store>:<path>[#<field>][?option&option]`.
//!
//! The store ends at the first `:`, the path at the first `#` or `?`, the field at the first `?` after it. So a
//! path may hold `:` and anything else but `#`, `?` and control characters; neither it nor a field can hold the
//! two separators, and nothing un-escapes them: `%3F` in a path is these three characters for the store. White
//! space around the whole is not part of it, for YAML block texts end with a line end.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use super::{Encoding, Field, Problem, Reference, Source, StoreNames, duration, mode, suggest};

/// The longest reference, in bytes: it has to fit into an error that fits into an event.
const MAX_BYTES: usize = 1024;
/// The options that mean the same for every store.
const OPTIONS: [&str; 5] = ["optional", "mode", "encoding", "version", "refresh"];
/// How many stores an error lists.
const LISTED_STORES: usize = 10;

impl Reference {
    /// Reads a reference to one of `stores`.
    ///
    /// The error says what is wrong and what to write; it never repeats a text that does not look like a reference,
    /// for that may be a password put in the wrong place.
    pub fn parse(text: &str, stores: &StoreNames) -> Result<Self, Problem> {
        let text = text.trim_ascii();
        if text.is_empty() {
            return Err(Problem::new("the reference is empty; write <store>:<path>#<field>"));
        }
        if text.len() > MAX_BYTES {
            return Err(Problem::new(format!(
                "the reference has {} bytes; at most {MAX_BYTES} are possible",
                text.len()
            )));
        }
        if text.chars().any(char::is_control) {
            return Err(Problem::new("the reference holds a control character; write it on one line"));
        }
        let Some((store, rest)) = text.split_once(':') else {
            return Err(Problem::new("no store is named; write <store>:<path>#<field>"));
        };
        let store = find_store(store, stores)?;
        let (target, options) = match rest.split_once('?') {
            Some((target, options)) => (target, Some(options)),
            None => (rest, None),
        };
        // Without its options the reference would be another.
        if target.ends_with(' ') {
            return Err(Problem::new("a space stands before ?; write the options without one"));
        }
        let (path, field) = match target.split_once('#') {
            Some((path, field)) => (path, Some(field)),
            None => (target, None),
        };
        check_path(path)?;
        let field = field.map(Field::parse).transpose()?;
        let mut reference = Self {
            source: Source { store, path: path.into(), version: None, options: BTreeMap::new() },
            field,
            optional: false,
            encoding: Encoding::Plain,
            refresh: None,
            mode: None,
        };
        if let Some(options) = options {
            reference.read_options(options)?;
        }
        Ok(reference)
    }

    fn read_options(&mut self, options: &str) -> Result<(), Problem> {
        if options.contains('?') {
            return Err(Problem::new("? stands twice; write one before the options and & between them"));
        }
        if options.contains('#') {
            return Err(Problem::new(
                "# stands behind the options; write the field before them: <store>:<path>#<field>?<option>",
            ));
        }
        let mut seen = Vec::new();
        for option in options.split('&') {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
            if name.is_empty() || !name.bytes().all(legal) {
                return Err(Problem::new(
                    "an option has no name or a strange one; write ?name=value&name=value with names of A-Z a-z 0-9 _ - .",
                ));
            }
            if seen.contains(&name) {
                return Err(Problem::new(format!("option {name} is given twice; give it once")));
            }
            seen.push(name);
            self.read_option(name, value)?;
        }
        Ok(())
    }

    fn read_option(&mut self, name: &str, value: Option<&str>) -> Result<(), Problem> {
        let value = match (name, value) {
            ("optional", None) => {
                self.optional = true;
                return Ok(());
            }
            ("optional", Some(_)) => {
                return Err(Problem::new("option optional takes no value; write ?optional"));
            }
            (_, Some("")) => {
                return Err(Problem::new(format!("option {name} has no value; write {name}=<value>")));
            }
            // At the end of a reference it would be no part of it: the same option must not mean two things.
            (_, Some(value)) if value.trim_ascii_end() != value => {
                return Err(Problem::new(format!("option {name} ends with a space; leave it out")));
            }
            (_, Some(value)) => value,
            (name, None) => return Err(lonely_option(name)),
        };
        match name {
            "mode" => self.mode = Some(mode::parse(value)?),
            "refresh" => {
                self.refresh = Some(
                    duration::parse(value).map_err(|why| Problem::new(format!("option refresh: {why}")))?,
                );
            }
            "version" => self.source.version = Some(value.into()),
            "encoding" if value == "base64" => self.encoding = Encoding::Base64,
            "encoding" => {
                return Err(Problem::new("the encoding is not known; base64 is: write encoding=base64"));
            }
            _ => {
                self.source.options.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(())
    }
}

impl Field {
    /// A member's name, or with a leading `/` a JSON Pointer (RFC 6901 §3 and §4).
    fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() {
            return Err(Problem::new(
                "the field after # is empty; name one, or leave out # for the whole secret as json",
            ));
        }
        if text.contains('#') {
            return Err(Problem::new(
                "# stands twice; one field, or one json pointer such as #/a/b, is possible",
            ));
        }
        match text.strip_prefix('/') {
            None => Ok(Self::Key(text.to_owned())),
            Some(tokens) => tokens.split('/').map(unescape).collect::<Result<_, _>>().map(Self::Pointer),
        }
    }
}

/// One reference token of a JSON Pointer.
fn unescape(token: &str) -> Result<String, Problem> {
    let mut parts = token.split('~');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escaped, rest) = match (part.strip_prefix('0'), part.strip_prefix('1')) {
            (Some(rest), _) => ('~', rest),
            (_, Some(rest)) => ('/', rest),
            (None, None) => {
                return Err(Problem::new(
                    "the json pointer has a ~ without 0 or 1; write ~0 for ~ and ~1 for /",
                ));
            }
        };
        text.push(escaped);
        text.push_str(rest);
    }
    Ok(text)
}

fn check_path(path: &str) -> Result<(), Problem> {
    if path.is_empty() {
        return Err(Problem::new("the path after the store is empty; write <store>:<path>#<field>"));
    }
    // A store may put the path into a URL or a file's name, where these climb.
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(Problem::new("the path has a segment . or ..; write the path without them"));
    }
    Ok(())
}

fn find_store(name: &str, stores: &StoreNames) -> Result<Arc<str>, Problem> {
    if let Some(store) = stores.find(name) {
        return Ok(Arc::clone(store));
    }
    if name.is_empty() {
        return Err(Problem::new(format!("the store before : is empty; {}", known(stores))));
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if name.len() > 63 || !name.bytes().all(legal) {
        return Err(Problem::new(format!("what stands before : is no store's name; {}", known(stores))));
    }
    let hint = suggest::nearest(name, stores.iter())
        .map(|near| format!("did you mean {near}? "))
        .unwrap_or_default();
    Err(Problem::new(format!("unknown store {name}; {hint}{}", known(stores))))
}

fn known(stores: &StoreNames) -> String {
    let names: Vec<&str> = stores.iter().take(LISTED_STORES).collect();
    let more = stores.iter().count() - names.len();
    match (names.is_empty(), more) {
        (true, _) => "no store is configured".to_owned(),
        (false, 0) => format!("configured: {}", names.join(", ")),
        (false, more) => format!("configured: {} and {more} more", names.join(", ")),
    }
}

fn lonely_option(name: &str) -> Problem {
    if OPTIONS.contains(&name) {
        return Problem::new(format!("option {name} has no value; write {name}=<value>"));
    }
    match suggest::nearest(name, OPTIONS) {
        Some(near) => Problem::new(format!("unknown option {name}; did you mean {near}?")),
        None => {
            Problem::new(format!("unknown option {name}; a store's own options are written {name}=<value>"))
        }
    }
}

/// The options in the form they are read from.
pub(super) fn write_options(reference: &Reference, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut options = Vec::new();
    if reference.optional {
        options.push("optional".to_owned());
    }
    options.extend(reference.mode.map(|mode| format!("mode={mode:04o}")));
    if reference.encoding == Encoding::Base64 {
        options.push("encoding=base64".to_owned());
    }
    options.extend(reference.source.version.iter().map(|version| format!("version={version}")));
    // humantime writes `1h 30m`, which is read back as it stands.
    options
        .extend(reference.refresh.map(|refresh| format!("refresh={}", humantime::format_duration(refresh))));
    options.extend(reference.source.options.iter().map(|(name, value)| format!("{name}={value}")));
    for (place, option) in options.iter().enumerate() {
        f.write_char(if place == 0 { '?' } else { '&' })?;
        f.write_str(option)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn stores() -> StoreNames {
        ["vault", "sops", "aws-eu"].into_iter().collect()
    }

    fn parse(text: &str) -> Reference {
        Reference::parse(text, &stores()).unwrap()
    }

    #[test]
    fn parts() {
        let reference = parse("vault:kv/data/payments#password");
        assert_eq!(&*reference.source.store, "vault");
        assert_eq!(&*reference.source.path, "kv/data/payments");
        assert_eq!(reference.field, Some(Field::Key("password".to_owned())));
        assert!(!reference.optional);
        assert_eq!(reference.to_string(), "vault:kv/data/payments#password");

        let reference = parse(
            " vault:a:b/c?optional&mode=0400&encoding=base64&version=3&refresh=1h 30m&namespace=team/a&ttl=60\n",
        );
        assert_eq!(&*reference.source.path, "a:b/c");
        assert_eq!(reference.field, None);
        assert!(reference.optional);
        assert_eq!(reference.mode, Some(0o400));
        assert_eq!(reference.encoding, Encoding::Base64);
        assert_eq!(reference.source.version.as_deref(), Some("3"));
        assert_eq!(reference.refresh, Some(Duration::from_secs(5400)));
        let options: Vec<_> =
            reference.source.options.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(options, [("namespace", "team/a"), ("ttl", "60")]);
        assert_eq!(reference.to_string(), "vault:a:b/c", "messages show no options");
    }

    #[test]
    fn what_the_store_sees_decides_what_is_one_fetch() {
        assert_eq!(parse("vault:a#x?mode=0400&optional&refresh=5s").source, parse("vault:a#y").source);
        assert_ne!(parse("vault:a?version=1").source, parse("vault:a").source);
        assert_ne!(parse("vault:a?ttl=60").source, parse("vault:a").source);
    }

    #[test]
    fn fields() {
        for (text, field) in [
            ("vault:a#/a/b", Field::Pointer(vec!["a".into(), "b".into()])),
            ("vault:a#/a~1b/m~0n", Field::Pointer(vec!["a/b".into(), "m~n".into()])),
            ("vault:a#/~01", Field::Pointer(vec!["~1".into()])),
            ("vault:a#/", Field::Pointer(vec![String::new()])),
            ("vault:a#a~b/c", Field::Key("a~b/c".into())),
        ] {
            assert_eq!(parse(text).field, Some(field), "{text}");
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn percent_signs_are_the_store_s_own() {
        assert_eq!(&*parse("vault:a%3Fb%23c%2e%2e").source.path, "a%3Fb%23c%2e%2e");
    }

    #[test]
    fn what_is_no_reference() {
        let dots = "the path has a segment . or ..; write the path without them";
        let strange = "an option has no name or a strange one; write ?name=value&name=value with names of A-Z a-z 0-9 _ - .";
        let known = "configured: aws-eu, sops, vault";
        let tilde = "the json pointer has a ~ without 0 or 1; write ~0 for ~ and ~1 for /";
        for (text, problem) in [
            ("", "the reference is empty; write <store>:<path>#<field>"),
            ("  \n", "the reference is empty; write <store>:<path>#<field>"),
            ("hunter2", "no store is named; write <store>:<path>#<field>"),
            ("a\nb:c", "the reference holds a control character; write it on one line"),
            (":a", &format!("the store before : is empty; {known}")),
            ("valut:a", &format!("unknown store valut; did you mean vault? {known}")),
            ("Vault:a", &format!("unknown store Vault; did you mean vault? {known}")),
            ("kubernetes:a", &format!("unknown store kubernetes; {known}")),
            ("p4ss w0rd!:a", &format!("what stands before : is no store's name; {known}")),
            ("vault:", "the path after the store is empty; write <store>:<path>#<field>"),
            ("vault:#a", "the path after the store is empty; write <store>:<path>#<field>"),
            ("vault:a ?optional", "a space stands before ?; write the options without one"),
            ("vault:?optional", "the path after the store is empty; write <store>:<path>#<field>"),
            ("vault:../sys", dots),
            ("vault:a/./b", dots),
            ("vault:a#", "the field after # is empty; name one, or leave out # for the whole secret as json"),
            (
                "vault:a#?optional",
                "the field after # is empty; name one, or leave out # for the whole secret as json",
            ),
            ("vault:a#b#c", "# stands twice; one field, or one json pointer such as #/a/b, is possible"),
            ("vault:a#/a~", tilde),
            ("vault:a#/a~2", tilde),
            ("vault:a?optional?mode=0400", "? stands twice; write one before the options and & between them"),
            (
                "vault:a?optional#b",
                "# stands behind the options; write the field before them: <store>:<path>#<field>?<option>",
            ),
            ("vault:a?", strange),
            ("vault:a?optional&", strange),
            ("vault:a?=b", strange),
            ("vault:a?a b=c", strange),
            ("vault:a?optional&optional", "option optional is given twice; give it once"),
            ("vault:a?x=1&x=1", "option x is given twice; give it once"),
            ("vault:a?optional=true", "option optional takes no value; write ?optional"),
            ("vault:a?optinal", "unknown option optinal; did you mean optional?"),
            ("vault:a?wrapped", "unknown option wrapped; a store's own options are written wrapped=<value>"),
            ("vault:a?mode", "option mode has no value; write mode=<value>"),
            ("vault:a?b=1 &a=2", "option b ends with a space; leave it out"),
            ("vault:a?version=", "option version has no value; write version=<value>"),
            ("vault:a?mode=rw", "mode is not three or four octal digits; write for example mode=0440"),
            ("vault:a?encoding=hex", "the encoding is not known; base64 is: write encoding=base64"),
            (
                "vault:a?refresh=soon",
                "option refresh: not a duration; write a number and a unit, such as 30s, 5m or 1h",
            ),
        ] {
            assert_eq!(Reference::parse(text, &stores()).unwrap_err().to_string(), problem, "{text:?}");
        }
        let long = format!("vault:{}", "a".repeat(1019));
        assert_eq!(
            Reference::parse(&long, &stores()).unwrap_err().to_string(),
            "the reference has 1025 bytes; at most 1024 are possible"
        );
    }

    #[test]
    fn stores_are_listed_up_to_ten() {
        let none = StoreNames::default();
        let text = |stores: &StoreNames| Reference::parse("x:a", stores).unwrap_err().to_string();
        assert_eq!(text(&none), "unknown store x; no store is configured");
        let many: StoreNames = (10..22).map(|n| format!("store-{n}")).collect();
        assert!(text(&many).ends_with("store-19 and 2 more"), "{}", text(&many));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            store in prop::sample::select(vec!["vault", "sops", "aws-eu"]),
            path in "[^#?\\p{Cc}\\p{Z}]{1,40}",
            field in prop::option::of(prop_oneof![
                "[^#?/\\p{Cc}\\p{Z}][^#?\\p{Cc}\\p{Z}]{0,20}".prop_map(Field::Key),
                prop::collection::vec("[^#?\\p{Cc}\\p{Z}]{0,10}", 1..4).prop_map(Field::Pointer),
            ]),
            optional: bool,
            base64: bool,
            version in prop::option::of("[a-z0-9=]{1,8}"),
            seconds in prop::option::of(1u64..=86400),
            mode in prop::option::of(prop::sample::select(vec![0o400u32, 0o440, 0o444, 0o004])),
            options in prop::collection::btree_map("x-[a-z]{1,6}", "[^#?&\\p{Cc}\\p{Z}]{1,10}", 0..4),
        ) {
            prop_assume!(!path.split('/').any(|segment| matches!(segment, "." | "..")));
            let reference = Reference {
                source: Source { store: store.into(), path: path.into(), version: version.map(Into::into), options },
                field,
                optional,
                encoding: if base64 { Encoding::Base64 } else { Encoding::Plain },
                refresh: seconds.map(Duration::from_secs),
                mode,
            };
            prop_assert_eq!(&Reference::parse(&format!("{reference:#}"), &stores()).unwrap(), &reference);
            let plain = Reference::parse(&reference.to_string(), &stores()).unwrap();
            prop_assert_eq!(plain.source.path, reference.source.path);
            prop_assert_eq!(plain.field, reference.field);
        }

        #[test]
        fn what_is_read_is_read_again_from_what_it_says(text in "(vault|sops|x):?[a-z/:~.%]{0,12}(#[a-z/~01#]{0,8})?(\\?[a-z=&?]{0,20})?") {
            if let Ok(reference) = Reference::parse(&text, &stores()) {
                prop_assert_eq!(Reference::parse(&format!("{reference:#}"), &stores()).unwrap(), reference);
            }
        }

        #[test]
        fn anything_gets_an_answer(text in "\\PC{0,60}|.{0,60}") {
            match Reference::parse(&text, &stores()) {
                Ok(reference) => prop_assert!(!reference.source.path.is_empty()),
                Err(problem) => prop_assert!(!problem.to_string().is_empty()),
            }
        }
    }
}
