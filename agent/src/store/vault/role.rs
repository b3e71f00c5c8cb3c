//! The role a pod logs in with: one for all, or one made from its SPIFFE ID. The pod itself has no say in it.

use crate::spiffe::SpiffeId;

/// What is between the placeholders is written as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    TrustDomain,
    Namespace,
    ServiceAccount,
    /// A segment of the path, the first is 1.
    Segment(usize),
}

/// A role, or a template of one: `{td}`, `{ns}`, `{sa}` and `{1}`, `{2}`, … (segments of the ID's path).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role {
    text: String,
    parts: Vec<Part>,
}

impl Role {
    /// Reads a role. Two placeholders must have something between them that can be part of neither, or two pods'
    /// names could add up to one role.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |problem: &str| format!("role {text:?}: {problem}");
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(|| wrong("{ without }"))?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            } else if !parts.is_empty() {
                return Err(wrong("two names stand side by side; write _ between them"));
            }
            parts.push(match (name, name.parse::<usize>()) {
                ("td", _) => Part::TrustDomain,
                ("ns", _) => Part::Namespace,
                ("sa", _) => Part::ServiceAccount,
                (_, Ok(place)) if place > 0 => Part::Segment(place),
                _ => return Err(wrong("only {td}, {ns}, {sa} and {1}, {2}, … can stand in braces")),
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        if parts.is_empty() {
            return Err(wrong("is empty; leave it out for the mount's default role"));
        }
        let places = parts.len();
        for (place, part) in parts.iter().enumerate() {
            let Part::Text(between) = part else { continue };
            if !between.chars().all(legal) {
                return Err(wrong("a role's name is made of A-Z a-z 0-9 _ - ."));
            }
            if place > 0 && place + 1 < places && !between.contains('_') {
                return Err(wrong(
                    "two names must have _ between them, which no Kubernetes name has: with - or . those of two pods could add up to one role",
                ));
            }
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The role of `id`; the error says which part it does not have.
    pub(super) fn of(&self, id: &SpiffeId) -> Result<String, String> {
        let segments: Vec<&str> = id.path().split('/').skip(1).collect();
        let account = match *segments {
            ["ns", namespace, "sa", name] => Some((namespace, name)),
            _ => None,
        };
        let mut role = String::new();
        for part in &self.parts {
            let (name, value) = match part {
                Part::Text(text) => (String::new(), Some(text.as_str())),
                Part::TrustDomain => (String::new(), Some(id.trust_domain().as_str())),
                Part::Namespace => ("{ns}".to_owned(), account.map(|(namespace, _)| namespace)),
                Part::ServiceAccount => ("{sa}".to_owned(), account.map(|(_, name)| name)),
                Part::Segment(place) => (format!("{{{place}}}"), segments.get(place - 1).copied()),
            };
            let value = value.ok_or_else(|| {
                format!("the role {:?} of its configuration has {name}, and {id} has no such part", self.text)
            })?;
            // An underscore inside a part would make the one between them worth nothing.
            if !matches!(part, Part::Text(_)) && self.parts.len() > 2 && value.contains('_') {
                return Err(format!(
                    "the role {:?} of its configuration cannot be made from {id}: {value:?} holds the _ that separates its names",
                    self.text
                ));
            }
            role.push_str(value);
        }
        Ok(role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(template: &str, id: &str) -> Result<String, String> {
        Role::parse(template).unwrap().of(&id.parse().unwrap())
    }

    #[test]
    fn roles() {
        let id = "spiffe://example.org/ns/pay/sa/api";
        for (template, made) in [
            ("countersign", "countersign"),
            ("{ns}", "pay"),
            ("{ns}_{sa}", "pay_api"),
            ("k8s-{ns}", "k8s-pay"),
            ("{td}_{2}_{4}", "example.org_pay_api"),
        ] {
            assert_eq!(role(template, id).unwrap(), made);
        }
        let problem = role("{ns}_{sa}", "spiffe://example.org/web").unwrap_err();
        assert!(problem.contains("{ns}") && problem.contains("spiffe://example.org/web"), "{problem}");
        assert_eq!(role("{1}", "spiffe://example.org/web").unwrap(), "web");
        assert!(role("{1}_{2}", "spiffe://example.org/a_b/c").is_err(), "a_b and c, or a and b_c?");
    }

    #[test]
    fn what_is_no_role() {
        for (template, why) in [
            ("", "is empty"),
            ("{ns}{sa}", "side by side"),
            ("{ns}-{sa}", "_ between them"),
            ("{ns}.{sa}", "_ between them"),
            ("{name}", "only {td}"),
            ("{0}", "only {td}"),
            ("{ns", "{ without }"),
            ("a/b", "is made of"),
        ] {
            let problem = Role::parse(template).unwrap_err();
            assert!(problem.contains(why), "{template}: {problem}");
        }
    }
}
