//! What the API server was asked, by whom, from its audit log.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use crate::secrets::SYSTEM;

/// One request that was answered.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    verb: String,
    user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: Option<Object>,
}

#[derive(Debug, Deserialize)]
struct User {
    username: String,
}

#[derive(Debug, Deserialize)]
struct Object {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
}

/// A kind of request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The service account's name.
    pub account: String,
    /// What the client calls itself.
    pub agent: String,
    /// Such as `create`.
    pub verb: String,
    /// Such as `tokenreviews`, with the subresource if there is one.
    pub resource: String,
}

/// How many requests of each kind our service accounts have made. Kubelet asks as the node, and is not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests(BTreeMap<Kind, u64>);

impl Requests {
    /// All of the log so far.
    pub fn read(audit: &Path) -> Result<Self> {
        Ok(Self::of(&fs::read_to_string(audit)?))
    }

    fn of(text: &str) -> Self {
        let prefix = format!("system:serviceaccount:{SYSTEM}:countersign-");
        let mut all = BTreeMap::new();
        for line in text.lines().filter(|line| line.contains(&prefix)) {
            // The last line may be half written.
            let Ok(event) = serde_json::from_str::<Event>(line) else { continue };
            let Some(account) = event.user.username.strip_prefix(&prefix) else { continue };
            // A watch is counted when it is answered, not when it ends.
            let counted = if event.verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
            if event.stage != counted {
                continue;
            }
            let resource = event.object_ref.map_or_else(String::new, |object| {
                if object.subresource.is_empty() {
                    object.resource
                } else {
                    format!("{}/{}", object.resource, object.subresource)
                }
            });
            let kind = Kind {
                account: format!("countersign-{account}"),
                agent: event.user_agent,
                verb: event.verb,
                resource,
            };
            *all.entry(kind).or_default() += 1;
        }
        Self(all)
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let more = |(kind, count): (&Kind, &u64)| {
            let more = count.saturating_sub(before.0.get(kind).copied().unwrap_or_default());
            (more > 0).then(|| (kind.clone(), more))
        };
        Self(self.0.iter().filter_map(more).collect())
    }

    /// How many each account has made.
    pub fn by_account(&self) -> BTreeMap<&str, u64> {
        let mut all = BTreeMap::new();
        for (kind, count) in &self.0 {
            *all.entry(kind.account.as_str()).or_default() += count;
        }
        all
    }

    /// The kinds whose client does not say which of our processes it is.
    pub fn nameless(&self) -> Vec<&Kind> {
        let named = |kind: &&Kind| {
            let process = kind.account.trim_start_matches("countersign-");
            kind.agent.starts_with("countersign-agent/") && kind.agent.ends_with(&format!(" ({process})"))
        };
        self.0.keys().filter(|kind| !named(kind)).collect()
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// How many were of this verb and resource.
    pub fn of_kind(&self, verb: &str, resource: &str) -> u64 {
        self.0.iter().filter(|(kind, _)| kind.verb == verb && kind.resource == resource).map(|(_, n)| n).sum()
    }
}

/// `12 countersign-issuer create tokenreviews (countersign-agent/1.0.0 (issuer))` and so on, the most first.
impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: Vec<_> = self.0.iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (number, (kind, count)) in kinds.into_iter().enumerate() {
            let Kind { account, agent, verb, resource } = kind;
            write!(f, "{}{count} {account} {verb} {resource} ({agent})", if number > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stage: &str, verb: &str, user: &str, resource: &str) -> String {
        let user = format!("system:serviceaccount:{user}");
        let event = serde_json::json!({"stage": stage, "verb": verb, "user": {"username": user},
            "userAgent": "countersign-agent/0.1.0 (issuer)", "objectRef": {"resource": resource}});
        format!("{event}\n")
    }

    #[test]
    fn ours_are_told_apart_from_everybody_elses() {
        let issuer = format!("{SYSTEM}:countersign-issuer");
        let before = Requests::of(&line("ResponseComplete", "create", &issuer, "tokenreviews"));
        let text = [
            line("ResponseComplete", "create", &issuer, "tokenreviews"),
            line("ResponseComplete", "create", &issuer, "tokenreviews"),
            line("ResponseStarted", "watch", &issuer, "configmaps"),
            line("ResponseComplete", "watch", &issuer, "configmaps"),
            line("ResponseComplete", "create", "default:countersign-issuer", "tokenreviews"),
            line("ResponseComplete", "get", "kube-system:other", "pods"),
            r#"{"stage":"ResponseComplete","verb":"get","user":{"username":"system:node:n"}}"#.to_owned(),
            "{\"stage\":".to_owned(),
        ]
        .concat();
        let since = Requests::of(&text).since(&before);
        assert_eq!((since.count(), since.of_kind("create", "tokenreviews")), (2, 1));
        assert_eq!(since.by_account(), BTreeMap::from([("countersign-issuer", 2)]));
        assert!(since.nameless().is_empty());
        let agent = format!("{SYSTEM}:countersign-agent");
        let stranger = Requests::of(&line("ResponseComplete", "get", &agent, "configmaps"));
        assert_eq!(stranger.nameless().len(), 1, "the agent's account, and the issuer's name");
        let told = since.to_string();
        assert!(
            told.contains("1 countersign-issuer create tokenreviews (countersign-agent/0.1.0 (issuer))"),
            "{told}"
        );
    }
}
