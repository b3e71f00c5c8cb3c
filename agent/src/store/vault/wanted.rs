//! What a reference asks of the server: path, parameters, and the options that are ours.
//!
//! Ours have a dot in their names (`vault.wrap`), which no parameter of the server has, so the two cannot collide. The
//! few names that every store's references have (`version`, `mode`, …) reach the server as `body.version` and so on.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use super::config::Namespace;
use crate::Error;
use crate::request::{Source, nearest};

const OURS: [&str; 6] =
    ["vault.method", "vault.namespace", "vault.wrap", "vault.unwrap", "vault.created-by", "vault.lease"];
/// Before a parameter whose name is one of every store's options.
const BODY: &str = "body.";
/// Shortest and longest life of a wrapping token.
const WRAP: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(24 * 3600));

/// One reference, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// As the pod wrote it, without options: for messages.
    pub(super) reference: String,
    /// The API's path without `/v1/`.
    pub(super) path: Path,
    /// What the pod says about the method.
    pub(super) method: Option<Verb>,
    /// Into the body or the query.
    pub(super) parameters: BTreeMap<String, String>,
    /// A version of KV v2's.
    pub(super) version: Option<u64>,
    /// Below the store's.
    pub(super) namespace: Namespace,
    /// How long a wrapped answer is to live.
    pub(super) wrap: Option<Duration>,
    /// The secret holds a wrapping token to be unwrapped.
    pub(super) unwrap: Option<Unwrap>,
    /// Whose the credential is.
    pub(super) lease: LeaseMode,
}

/// How the server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Post,
}

/// Where a wrapping token lies and what must have made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unwrap {
    pub(super) field: String,
    pub(super) created_by: String,
}

/// Whose a leased credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseMode {
    /// As the engine suggests.
    Auto,
    /// The volume's own.
    Own,
    /// Of all volumes of the identity together.
    Shared,
    /// There is none to look after.
    None,
}

/// A path of the API, without slashes at its ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Path(String);

impl Path {
    /// Of text that is a path already, or made of pieces of one.
    pub(super) fn of(path: String) -> Self {
        Self(path)
    }

    /// As it stands in a policy.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// As it stands in a URL.
    pub(super) fn encoded(&self) -> String {
        let mut url = String::with_capacity(self.0.len());
        encode_into(&mut url, &self.0, b"/:@!$'()*+,;=-._~");
        url
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Percent-encodes all but letters, digits and `kept` (RFC 3986 §2).
pub(super) fn encode_into(url: &mut String, text: &str, kept: &[u8]) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            url.push(char::from(byte));
        } else {
            // Writing into a string does not fail.
            write!(url, "%{byte:02X}").unwrap_or_default();
        }
    }
}

impl Wanted {
    /// # Errors
    /// [`Error::Request`] for a path that can be none and for options that do not fit together.
    pub(super) fn parse(source: &Source) -> Result<Self, Error> {
        let fail = |problem: &str| Error::request(source.to_string(), problem);
        let path = source.path.trim_end_matches('/');
        if path.starts_with('/') {
            return Err(fail("the path begins with a slash; write it without"));
        }
        if path.split('/').any(str::is_empty) {
            return Err(fail("the path has an empty segment; write single slashes, none at the ends"));
        }
        if path == "v1" || path.starts_with("v1/") {
            return Err(fail("the path begins with v1/, as in a URL; write it without, such as kv/data/app"));
        }
        let version = source
            .version
            .as_deref()
            .map(|text| {
                text.parse()
                    .ok()
                    .filter(|version| *version > 0)
                    .ok_or("version: write a whole number, 1 or more")
            })
            .transpose()
            .map_err(fail)?;
        let mut wanted = Self {
            reference: source.to_string(),
            path: Path(path.to_owned()),
            method: None,
            parameters: BTreeMap::new(),
            version,
            namespace: Namespace::default(),
            wrap: None,
            unwrap: None,
            lease: LeaseMode::Auto,
        };
        let (mut field, mut created_by) = (None, None);
        for (name, value) in &source.options {
            let known = match name.as_str() {
                "vault.unwrap" => {
                    field = Some(value.clone());
                    Ok(())
                }
                "vault.created-by" => {
                    created_by = Some(value.trim_matches('/').to_owned());
                    Ok(())
                }
                name => wanted.option(name, value),
            };
            known.map_err(|problem| fail(&problem))?;
        }
        wanted.unwrap = match (field, created_by) {
            (Some(field), Some(created_by)) => Some(Unwrap { field, created_by }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(fail(
                    "vault.unwrap needs vault.created-by=<path>: a wrapping token is unwrapped only if that path made it",
                ));
            }
            (None, Some(_)) => return Err(fail("vault.created-by is for vault.unwrap only; leave it out")),
        };
        if wanted.wrap.is_some() && wanted.unwrap.is_some() {
            return Err(fail("vault.wrap and vault.unwrap contradict each other; use one"));
        }
        if wanted.wrap.is_some() && matches!(wanted.lease, LeaseMode::Own | LeaseMode::Shared) {
            return Err(fail(
                "a wrapped answer's lease cannot be looked after; leave out vault.lease or vault.wrap",
            ));
        }
        Ok(wanted)
    }

    fn option(&mut self, name: &str, value: &str) -> Result<(), String> {
        match (name, value) {
            ("vault.method", "get") => self.method = Some(Verb::Get),
            ("vault.method", "post") => self.method = Some(Verb::Post),
            ("vault.method", _) => return Err("vault.method: write get or post".to_owned()),
            ("vault.lease", "own") => self.lease = LeaseMode::Own,
            ("vault.lease", "shared") => self.lease = LeaseMode::Shared,
            ("vault.lease", "none") => self.lease = LeaseMode::None,
            ("vault.lease", _) => return Err("vault.lease: write own, shared or none".to_owned()),
            ("vault.namespace", value) => {
                self.namespace = Namespace::parse(value).map_err(|problem| format!("vault.{problem}"))?;
            }
            ("vault.wrap", value) => {
                let span =
                    humantime::parse_duration(value).ok().filter(|span| (WRAP.0..=WRAP.1).contains(span));
                self.wrap = Some(span.ok_or("vault.wrap: write a time from 10s to 24h, such as 5m")?);
            }
            (name, value) => {
                let parameter = name.strip_prefix(BODY).unwrap_or(name);
                if parameter.contains('.') {
                    return Err(match nearest(name, OURS) {
                        Some(near) => format!("unknown option {name}; did you mean {near}?"),
                        None => format!(
                            "unknown option {name}; with a dot there are {} and body.<name>",
                            OURS.join(", ")
                        ),
                    });
                }
                if self.parameters.insert(parameter.to_owned(), value.to_owned()).is_some() {
                    return Err(format!("parameter {parameter} is given twice; give it once"));
                }
            }
        }
        Ok(())
    }

    /// How the server is asked: as the pod says, else by whether there are parameters.
    pub(super) fn verb(&self) -> Verb {
        self.method.unwrap_or(if self.parameters.is_empty() { Verb::Get } else { Verb::Post })
    }

    /// The parameters as a query, with its question mark; empty without any.
    pub(super) fn query(&self) -> String {
        let mut query = String::new();
        let version = self.version.map(|version| ("version".to_owned(), version.to_string()));
        for (name, value) in version.into_iter().chain(self.parameters.clone()) {
            query.push(if query.is_empty() { '?' } else { '&' });
            encode_into(&mut query, &name, b"-._~");
            query.push('=');
            encode_into(&mut query, &value, b"-._~");
        }
        query
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Reference, StoreNames};

    fn parse(text: &str) -> Result<Wanted, String> {
        let stores: StoreNames = ["vault"].into_iter().collect();
        let reference = Reference::parse(text, &stores).unwrap();
        Wanted::parse(&reference.source).map_err(|error| error.to_string())
    }

    #[test]
    fn references() {
        let plain = parse("vault:kv/data/payments#password").unwrap();
        assert_eq!(
            (plain.path.as_str(), plain.verb(), plain.query().as_str()),
            ("kv/data/payments", Verb::Get, "")
        );
        let pinned = parse("vault:kv/data/payments?version=3&optional").unwrap();
        assert_eq!(pinned.query(), "?version=3");
        let signed = parse("vault:pki/sign/web?common_name=pay.internal&ttl=24h").unwrap();
        assert_eq!(signed.verb(), Verb::Post);
        assert_eq!(signed.parameters.len(), 2);
        let queried = parse("vault:a b/ü?vault.method=get&x=a b/c&body.version=2").unwrap();
        assert_eq!((queried.verb(), queried.query().as_str()), (Verb::Get, "?version=2&x=a%20b%2Fc"));
        assert_eq!(queried.path.encoded(), "a%20b/%C3%BC");
        let wrapped = parse(
            "vault:auth/approle/role/app/secret-id?vault.method=post&vault.wrap=5m&vault.namespace=a/b",
        )
        .unwrap();
        assert_eq!((wrapped.wrap, wrapped.verb()), (Some(Duration::from_secs(300)), Verb::Post));
        assert_eq!(wrapped.namespace.header(), Some("a/b"));
        let unwrapped =
            parse("vault:kv/data/boot?vault.unwrap=token&vault.created-by=/auth/approle/role/app/secret-id")
                .unwrap();
        assert_eq!(unwrapped.unwrap.unwrap().created_by, "auth/approle/role/app/secret-id");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("vault:/kv/data/a", "begins with a slash"),
            ("vault:kv//a", "an empty segment"),
            ("vault:v1/kv/data/a", "begins with v1/"),
            ("vault:kv/data/a?version=0", "version: write a whole number"),
            ("vault:kv/data/a?version=latest", "version: write a whole number"),
            ("vault:a?vault.wrp=5m", "did you mean vault.wrap?"),
            ("vault:a?else.where=5m", "unknown option else.where; with a dot there are"),
            ("vault:a?vault.wrap=1s", "from 10s to 24h"),
            ("vault:a?vault.method=put", "write get or post"),
            ("vault:a?vault.lease=yes", "own, shared or none"),
            ("vault:a?vault.unwrap=token", "needs vault.created-by"),
            ("vault:a?vault.created-by=b", "for vault.unwrap only"),
            ("vault:a?vault.wrap=1m&vault.unwrap=t&vault.created-by=b", "contradict"),
            ("vault:a?vault.wrap=1m&vault.lease=own", "cannot be looked after"),
            ("vault:a?vault.namespace=..", "namespace \"..\""),
            ("vault:a?body.x=1&x=2", "parameter x is given twice"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(why), "{text}: {problem}");
        }
    }
}
