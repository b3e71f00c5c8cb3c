//! Who may read what: rules from patterns of SPIFFE IDs to patterns of paths. What no rule allows is denied.
//!
//! A pattern is matched segment by segment. `*` stands for any text within one segment, `**` as the last segment for
//! one or more whole segments. In a path, `{ns}` and `{sa}` stand for the namespace and the service account of an ID
//! of the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, so that one rule serves them all.

use serde::Deserialize;

use crate::spiffe::{SpiffeId, TrustDomain};

/// One rule: identities that match its pattern may read paths that match one of its patterns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RuleText")]
pub struct Rule {
    trust_domain: TrustDomain,
    id: Pattern,
    paths: Vec<Pattern>,
}

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleText {
    /// Pattern of SPIFFE IDs.
    pub id: String,
    /// Patterns of paths.
    pub paths: Vec<String>,
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("allow rule for id {id:?}: {problem}")]
pub struct RuleError {
    id: String,
    problem: String,
}

impl Rule {
    /// Whether this rule lets `id` read `path`.
    #[must_use]
    pub fn permits(&self, id: &SpiffeId, path: &str) -> bool {
        let segments: Vec<&str> = id.path().split('/').skip(1).collect();
        let account = Account::of(&segments);
        *id.trust_domain() == self.trust_domain
            && self.id.matches(&segments, account)
            && self.paths.iter().any(|pattern| pattern.matches(&path.split('/').collect::<Vec<_>>(), account))
    }
}

impl TryFrom<RuleText> for Rule {
    type Error = RuleError;

    fn try_from(text: RuleText) -> Result<Self, Self::Error> {
        let fail = |problem: String| RuleError { id: text.id.clone(), problem };
        let rest =
            text.id.strip_prefix("spiffe://").ok_or_else(|| fail("does not start with spiffe://".into()))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| {
            fail("names a trust domain only; end it with /** to mean every identity in it".into())
        })?;
        let trust_domain = domain.parse().map_err(|_| {
            fail(format!(
                "the trust domain {domain:?} must be written out: 1 to 255 of a-z 0-9 . _ -, no pattern"
            ))
        })?;
        let id = Pattern::parse(path, Place::Id).map_err(fail)?;
        if text.paths.is_empty() {
            return Err(fail("has no paths, so it allows nothing".into()));
        }
        let paths = text
            .paths
            .iter()
            .map(|path| {
                Pattern::parse(path, Place::Path).map_err(|problem| format!("path {path:?}: {problem}"))
            })
            .collect::<Result<_, _>>()
            .map_err(fail)?;
        Ok(Self { trust_domain, id, paths })
    }
}

/// The namespace and service account in an ID.
#[derive(Debug, Clone, Copy)]
struct Account<'a> {
    namespace: &'a str,
    service_account: &'a str,
}

impl<'a> Account<'a> {
    fn of(segments: &[&'a str]) -> Option<Self> {
        match *segments {
            ["ns", namespace, "sa", service_account] => Some(Self { namespace, service_account }),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Id,
    Path,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    segments: Vec<Segment>,
    /// Ends in `**`.
    and_below: bool,
}

/// One segment between slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// The texts between its stars: without a star, one text that must be equal.
    Text(Vec<String>),
    /// `before{ns}after`
    Filled { before: String, with: Filling, after: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filling {
    Namespace,
    ServiceAccount,
}

impl Pattern {
    fn parse(text: &str, place: Place) -> Result<Self, String> {
        let mut segments: Vec<&str> = text.split('/').collect();
        let and_below = segments.last() == Some(&"**");
        if and_below {
            segments.pop();
        }
        let segments = segments.into_iter().map(|s| Segment::parse(s, place)).collect::<Result<_, _>>()?;
        Ok(Self { segments, and_below })
    }

    fn matches(&self, actual: &[&str], account: Option<Account<'_>>) -> bool {
        let enough = if self.and_below {
            actual.len() > self.segments.len()
        } else {
            actual.len() == self.segments.len()
        };
        enough && self.segments.iter().zip(actual).all(|(segment, actual)| segment.matches(actual, account))
    }
}

impl Segment {
    fn parse(text: &str, place: Place) -> Result<Self, String> {
        if text.is_empty() || text == "." || text == ".." {
            return Err(format!(
                "the segment {text:?} matches nothing: write neither //, . nor .., nor a / at an end"
            ));
        }
        if text.contains("**") {
            return Err("** may only be the whole last segment".into());
        }
        if place == Place::Path && text.contains(['{', '}']) {
            return Self::parse_filled(text);
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*');
        if place == Place::Id && !text.chars().all(legal) {
            return Err(format!("the segment {text:?} has a character that no SPIFFE ID has"));
        }
        Ok(Self::Text(text.split('*').map(str::to_owned).collect()))
    }

    /// With a second placeholder or a star beside it, two identities could be read from one name (`{ns}-{sa}` is `a-b-c`
    /// for two of them), and one tenant would reach the other's secrets.
    fn parse_filled(text: &str) -> Result<Self, String> {
        let (before, with, after) = [("{ns}", Filling::Namespace), ("{sa}", Filling::ServiceAccount)]
            .into_iter()
            .find_map(|(mark, with)| text.split_once(mark).map(|(before, after)| (before, with, after)))
            .ok_or_else(|| {
                format!("the segment {text:?} has a brace that is part of neither {{ns}} nor {{sa}}")
            })?;
        if before.contains(['{', '}', '*']) || after.contains(['{', '}', '*']) {
            return Err(format!(
                "the segment {text:?} may hold one {{ns}} or {{sa}} and no * beside it; write {{ns}}/{{sa}} or {{ns}}/*"
            ));
        }
        Ok(Self::Filled { before: before.into(), with, after: after.into() })
    }

    fn matches(&self, actual: &str, account: Option<Account<'_>>) -> bool {
        match self {
            Self::Text(parts) => matches_parts(parts, actual),
            Self::Filled { before, with, after } => account.is_some_and(|account| {
                let filling = match with {
                    Filling::Namespace => account.namespace,
                    Filling::ServiceAccount => account.service_account,
                };
                actual.strip_prefix(before.as_str()).and_then(|rest| rest.strip_suffix(after.as_str()))
                    == Some(filling)
            }),
        }
    }
}

/// Whether `actual` is `parts` with any text between them. The first and the last are bound to the ends; the ones
/// between are taken at their earliest place, which leaves the most room for the next.
fn matches_parts(parts: &[String], actual: &str) -> bool {
    let [first, middle @ .., last] = parts else {
        return parts.first().is_some_and(|only| only == actual);
    };
    let Some(mut rest) =
        actual.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()))
    else {
        return false;
    };
    middle.iter().all(|part| match rest.split_once(part.as_str()) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(id: &str, paths: &[&str]) -> Result<Rule, RuleError> {
        RuleText { id: id.into(), paths: paths.iter().map(|&p| p.into()).collect() }.try_into()
    }

    fn permits(pattern: &str, paths: &[&str], id: &str, path: &str) -> bool {
        rule(pattern, paths).unwrap().permits(&id.parse().unwrap(), path)
    }

    #[test]
    fn identities() {
        let api = "spiffe://td.example/ns/pay/sa/api";
        for (pattern, yes) in [
            ("spiffe://td.example/ns/pay/sa/api", true),
            ("spiffe://td.example/ns/*/sa/*", true),
            ("spiffe://td.example/ns/p*y/sa/a*i", true),
            ("spiffe://td.example/**", true),
            ("spiffe://td.example/ns/pay/**", true),
            ("spiffe://td.example/ns/pay/sa/api/**", false),
            ("spiffe://td.example/ns/pay/sa", false),
            ("spiffe://td.example/*", false),
            ("spiffe://td.example/ns/*", false),
            ("spiffe://td.example/ns/pay/sa/ap", false),
            ("spiffe://td.example/ns/pa/sa/api", false),
            ("spiffe://other.example/ns/pay/sa/api", false),
        ] {
            assert_eq!(permits(pattern, &["**"], api, "x"), yes, "{pattern}");
        }
    }

    #[test]
    fn paths() {
        for (pattern, path, yes) in [
            ("payments/*", "payments/db", true),
            ("payments/*", "payments", false),
            ("payments/*", "payments/a/b", false),
            ("payments/**", "payments/a/b", true),
            ("payments/**", "payments", false),
            ("**", "a/b/c", true),
            ("*", "a/b", false),
            ("db-*-prod", "db-eu-prod", true),
            ("db-*-prod", "db-prod", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*a", "a", false),
            ("{ns}/*", "pay/db", true),
            ("{ns}/*", "payx/db", false),
            ("{ns}/{sa}", "pay/api", true),
            ("{ns}/{sa}", "pay/other", false),
            ("apps/{sa}.d/x", "apps/api.d/x", true),
        ] {
            assert_eq!(
                permits("spiffe://td/**", &[pattern], "spiffe://td/ns/pay/sa/api", path),
                yes,
                "{pattern} {path}"
            );
        }
    }

    #[test]
    fn placeholders_need_an_identity_that_has_them() {
        assert!(!permits("spiffe://td/**", &["{ns}/*"], "spiffe://td/workload/pay", "pay/db"));
        assert!(permits("spiffe://td/**", &["shared/*"], "spiffe://td/workload/pay", "shared/db"));
        assert!(
            !permits("spiffe://td/**", &["**"], "spiffe://td", "x"),
            "an ID without a path is no workload"
        );
    }

    #[test]
    fn what_is_no_rule_says_so() {
        for (id, paths, word) in [
            ("https://td/ns", &["a"][..], "spiffe://"),
            ("spiffe://td", &["a"], "trust domain only"),
            ("spiffe://*/ns/a", &["a"], "written out"),
            ("spiffe://TD/ns/a", &["a"], "written out"),
            ("spiffe://td/ns/**/sa", &["a"], "last segment"),
            ("spiffe://td/ns/a**", &["a"], "last segment"),
            ("spiffe://td/ns//a", &["a"], "matches nothing"),
            ("spiffe://td/ns/{ns}", &["a"], "no SPIFFE ID has"),
            ("spiffe://td/ns/a", &[], "allows nothing"),
            ("spiffe://td/ns/a", &["../x"], "matches nothing"),
            ("spiffe://td/ns/a", &["/x"], "matches nothing"),
            ("spiffe://td/ns/a", &["x/"], "matches nothing"),
            ("spiffe://td/ns/a", &["{pod}/x"], "neither {ns} nor {sa}"),
            ("spiffe://td/ns/a", &["{ns}-{sa}"], "one {ns} or {sa}"),
            ("spiffe://td/ns/a", &["{ns}*"], "one {ns} or {sa}"),
        ] {
            let error = rule(id, paths).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(id), "{error}");
        }
    }
}
