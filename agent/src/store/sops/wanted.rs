//! Which file a reference means.

use std::fmt;

use crate::error::Error;
use crate::request::Source;

use super::format::Format;

/// A path beneath the directory that cannot lead above it, with or without a file's ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    store: String,
    path: String,
}

impl Wanted {
    /// # Errors
    /// [`Error::Request`] for a path that can be no file's, and for versions and options, which this store has none of.
    pub(super) fn parse(source: &Source) -> Result<Self, Error> {
        let fail = |problem: String| Err(Error::request(source.to_string(), problem));
        if source.version.is_some() {
            return fail(format!(
                "version: the store {} keeps files, which have no versions; leave the option out",
                source.store
            ));
        }
        if let Some(option) = source.options.keys().next() {
            return fail(format!(
                "the option {option:?} is unknown to the store {}, which keeps sops files and has no options of its own; leave it out",
                source.store
            ));
        }
        for part in source.path.split('/') {
            if part.is_empty() {
                return fail(
                    "the path has an empty component; write names between single slashes, none at the ends"
                        .into(),
                );
            }
            // `..data` of a mounted ConfigMap and `.git` are ways around the rules, not secrets.
            if part.starts_with('.') {
                return fail(format!("the path has a component {part:?}; none may begin with a dot"));
            }
            // A message may show the path as part of a rule that somebody then copies: it must not be a pattern there.
            if part.contains(['*', '{', '}', '"', '\\']) {
                return fail(format!(
                    "the path has a component {part:?}; none may have one of * {{ }} \" \\"
                ));
            }
            if part.len() > 255 || part.chars().any(char::is_control) {
                return fail("the path has a component that is no file name".into());
            }
        }
        Ok(Self { store: source.store.to_string(), path: source.path.to_string() })
    }

    /// As the reference has it.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The notation, where the reference has the file's ending.
    pub(super) fn ending(&self) -> Option<Format> {
        Format::of(&self.path).map(|(format, _)| format)
    }

    /// What a rule may name it by: with its ending, if the reference has one, and without.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        [Some(self.path.as_str()), Format::of(&self.path).map(|(_, stem)| stem)].into_iter().flatten()
    }

    /// The files that can be meant.
    pub(super) fn candidates(&self) -> impl Iterator<Item = (String, Format)> {
        let own = self.ending().map(|format| (self.path.clone(), format));
        let others =
            Format::ENDINGS.iter().map(|(ending, format)| (format!("{}{ending}", self.path), *format));
        let count = if own.is_some() { 0 } else { Format::ENDINGS.len() };
        own.into_iter().chain(others.take(count))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.store, self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn source(path: &str) -> Source {
        Source { store: "app".into(), path: path.into(), version: None, options: BTreeMap::new() }
    }

    #[test]
    fn candidates() {
        let paths = |path| {
            Wanted::parse(&source(path)).unwrap().candidates().map(|(path, _)| path).collect::<Vec<_>>()
        };
        assert_eq!(paths("a/b"), ["a/b.yaml", "a/b.yml", "a/b.json"]);
        assert_eq!(paths("a/b.json"), ["a/b.json"]);
        assert_eq!(paths("a/b.env"), ["a/b.env.yaml", "a/b.env.yml", "a/b.env.json"]);
    }

    #[test]
    fn what_is_no_path() {
        for path in [
            "/a",
            "a/",
            "a//b",
            "",
            ".",
            "..",
            "a/../b",
            "..data/a",
            ".sops.yaml",
            "a/.b",
            "a\0b",
            "a\nb",
            "**",
            "{ns}/a",
            "a\"b",
        ] {
            let error = Wanted::parse(&source(path)).unwrap_err();
            assert!(matches!(error, Error::Request { .. }), "{path:?}: {error}");
        }
    }

    #[test]
    fn versions_and_options_are_refused_by_name() {
        let error =
            Wanted::parse(&Source { version: Some("3".into()), ..source("a") }).unwrap_err().to_string();
        assert!(error.contains("app:a") && error.contains("no versions"), "{error}");
        let options = BTreeMap::from([("role".to_owned(), "x".to_owned())]);
        let error = Wanted::parse(&Source { options, ..source("a") }).unwrap_err().to_string();
        assert!(error.contains("\"role\""), "{error}");
    }
}
