//! What an answer that is no success means to the pod, and what to do about it.

use http::StatusCode;
use serde::Deserialize;

use super::answer::Reply;
use super::login::{Door, said};
use super::mount::{Engine, Mount};
use super::wanted::{Verb, Wanted};
use crate::Error;
use crate::secret::Secret;
use crate::spiffe::SpiffeId;

/// First segments below a KV v2 mount that mean something to it.
const KV_V2: [&str; 7] = ["data", "metadata", "delete", "undelete", "destroy", "subkeys", "config"];

/// What a refusal was an answer to.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) door: &'a Door,
    pub(super) id: &'a SpiffeId,
    pub(super) wanted: &'a Wanted,
    pub(super) mount: &'a Mount,
    /// The policies of the token it was asked with; none: not known.
    pub(super) policies: &'a [String],
    /// The namespace it was asked in.
    pub(super) namespace: Option<&'a str>,
}

/// The `data` of an answer 404 about a version that was deleted or destroyed.
#[derive(Deserialize)]
struct Gone {
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    version: u64,
    #[serde(default)]
    deletion_time: String,
    #[serde(default)]
    destroyed: bool,
}

impl Question<'_> {
    /// A path that cannot be one of its mount's, before it is asked for.
    pub(super) fn misplaced(&self) -> Option<Error> {
        let below = self.mount.below(&self.wanted.path);
        if self.mount.engine != Engine::KvV2 || below.first().is_some_and(|first| KV_V2.contains(first)) {
            return None;
        }
        let (mount, rest) = (&self.mount.path, below.join("/"));
        Some(self.not_found(format!(
            "{mount}/ is a key-value mount of version 2: write {}:{mount}/data/{rest}",
            self.store()
        )))
    }

    /// The error that `reply` amounts to. `secrets` are kept out of it.
    pub(super) fn refused(&self, reply: &Reply, secrets: &[&Secret]) -> Error {
        match reply.status {
            StatusCode::FORBIDDEN => self.denied(reply, secrets),
            // No word on the secret: nothing may be wiped for a name that somebody has mistyped.
            StatusCode::NOT_FOUND if reply.message(&[]).contains("namespace not found") => {
                self.unusable(format!(
                    "the server has no namespace {}; correct namespace of the store, or vault.namespace of the reference",
                    self.namespace.unwrap_or_default()
                ))
            }
            StatusCode::NOT_FOUND => self.absent(reply, secrets),
            StatusCode::METHOD_NOT_ALLOWED => {
                let other = match self.wanted.verb() {
                    Verb::Get => "post",
                    Verb::Post => "get",
                };
                Error::request(
                    self.wanted.reference.clone(),
                    format!(
                        "the server does not do that there ({}); try vault.method={other}",
                        said(reply, secrets)
                    ),
                )
            }
            StatusCode::BAD_REQUEST => self.bad(reply, secrets),
            status => {
                let words = said(reply, secrets);
                let problem = match status.as_u16() {
                    429 => format!(
                        "{}: a rate limit or lease quota is exceeded ({words}); all pods of a node count as one client where limits go by address",
                        self.wanted.reference
                    ),
                    502 => format!(
                        "{}: what the server asked in turn did not answer ({words})",
                        self.wanted.reference
                    ),
                    _ => format!("{}: the server answers {words}", self.wanted.reference),
                };
                self.door.client.unavailable(problem, reply.retry_after)
            }
        }
    }

    /// Nothing there that could be handed out.
    pub(super) fn not_found(&self, problem: String) -> Error {
        Error::NotFound { reference: self.wanted.reference.clone(), problem }
    }

    /// Something there that cannot be used.
    pub(super) fn unusable(&self, problem: impl std::fmt::Display) -> Error {
        Error::Unusable {
            store: self.store().to_owned(),
            problem: format!("{}: {problem}", self.wanted.reference),
        }
    }

    fn store(&self) -> &str {
        self.wanted.reference.split(':').next().unwrap_or_default()
    }

    fn denied(&self, reply: &Reply, secrets: &[&Secret]) -> Error {
        let message = reply.message(secrets);
        let role = match self.door.role(self.id) {
            Ok(Some(role)) => format!("role {role}"),
            Ok(None) | Err(_) => "the default role".to_owned(),
        };
        let policies = match self.policies {
            [] => String::new(),
            policies => format!(", policies {}", policies.join(" ")),
        };
        let namespace =
            self.namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
        let detail = if message.is_empty() || message.ends_with("permission denied") {
            String::new()
        } else {
            format!(" ({message})")
        };
        let instead = self.version_1().map(|path| format!("; {path}")).unwrap_or_default();
        Error::Denied {
            reference: self.wanted.reference.clone(),
            problem: format!(
                "the server does not let {} ({role}{policies}) have it{namespace}{detail}; a policy with {} would{instead}",
                self.id,
                stanza(self.wanted)
            ),
        }
    }

    /// What to write where a path of version 2 is used with a mount of version 1.
    fn version_1(&self) -> Option<String> {
        let below = self.mount.below(&self.wanted.path);
        match (&self.mount.engine, below.as_slice()) {
            (Engine::KvV1, ["data", rest @ ..]) if !rest.is_empty() => Some(format!(
                "{mount}/ is a key-value mount of version 1: write {}:{mount}/{}",
                self.store(),
                rest.join("/"),
                mount = self.mount.path
            )),
            _ => None,
        }
    }

    fn absent(&self, reply: &Reply, secrets: &[&Secret]) -> Error {
        let gone = reply
            .envelope()
            .and_then(|envelope| envelope.data)
            .and_then(|data| serde_json::from_str::<Gone>(data.get()).ok())
            .and_then(|gone| gone.metadata);
        if let Some(Metadata { version, deletion_time, destroyed }) = gone {
            return self.not_found(if destroyed {
                format!("version {version} is destroyed for good; write a new one")
            } else {
                format!("version {version} was deleted at {deletion_time}; undelete it, or write a new one")
            });
        }
        let message = reply.message(secrets);
        if message.contains("no handler for route") || message.contains("unsupported path") {
            let problem = if message.contains("unsupported path") {
                "its engine has no such path"
            } else {
                "nothing is mounted there"
            };
            return self.not_found(format!("{problem} ({message})"));
        }
        match (self.version_1(), self.wanted.version) {
            (Some(instead), _) => self.not_found(format!("no such secret; {instead}")),
            (None, Some(version)) => self.not_found(format!(
                "there is no version {version} of it: it was never written, or is older than what the mount keeps"
            )),
            (None, None) => {
                let message = if message.is_empty() { String::new() } else { format!(" ({message})") };
                self.not_found(format!("no such secret{message}"))
            }
        }
    }

    fn bad(&self, reply: &Reply, secrets: &[&Secret]) -> Error {
        let message = reply.message(secrets);
        if message.contains("unknown role") || message.contains("unknown static role") {
            return self.not_found(format!("its engine has no such role ({message})"));
        }
        let remedy = if message.contains("role requires keys of type") {
            "; the key is made on the node, and is ec P-256: the role must allow key_type ec or any"
        } else if message.contains("upgrading from non-versioned to versioned") {
            return self
                .door
                .client
                .unavailable(format!("{}: {message}", self.wanted.reference), reply.retry_after);
        } else {
            ""
        };
        self.unusable(format!("the server answers {}{remedy}", said(reply, secrets)))
    }
}

/// What a policy must say to allow `wanted`.
pub(super) fn stanza(wanted: &Wanted) -> String {
    let capabilities = match wanted.verb() {
        Verb::Get => r#"["read"]"#,
        Verb::Post => r#"["create", "update"]"#,
    };
    format!("path \"{}\" {{ capabilities = {capabilities} }}", wanted.path)
}
