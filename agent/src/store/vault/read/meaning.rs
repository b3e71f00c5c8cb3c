//! What an answer means: which part of it is the secret, which state of it, and how long that is good for.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng;

use super::Reading;
use crate::Error;
use crate::secret::{Node, Secret};
use crate::sources::Mint;
use crate::store::vault::answer::Reply;
use crate::store::vault::document::{self, number, text};
use crate::store::vault::lease::Terms;
use crate::store::vault::mount::{Engine, Mount};
use crate::store::vault::pki::{self, Signing};
use crate::store::vault::refusal::Question;
use crate::store::vault::wanted::Verb;
use crate::store::{Fetched, Fresh};

/// What was made for a pod and does not say when it ends is made anew after this.
const MADE: Duration = Duration::from_secs(12 * 3600);
/// A credential that is rotated by the server is looked at again this long after, and a little more.
const AFTER_ROTATION: Duration = Duration::from_secs(1);

/// An answer, understood.
pub(super) struct Understood {
    node: Node,
    version: String,
    fresh: Fresh,
    pub(super) terms: Option<Terms>,
    request_id: String,
}

impl Understood {
    pub(super) fn fetched(self) -> Fetched {
        Fetched {
            document: Arc::new(self.node),
            version: self.version,
            fresh: self.fresh,
            request_id: Some(self.request_id),
        }
    }
}

impl<M: Mint> Reading<'_, M> {
    pub(super) fn understand(
        &self,
        mount: &Mount,
        signing: Option<Signing>,
        reply: &Reply,
        policies: &[String],
    ) -> Result<Understood, Error> {
        let question = self.question(mount, policies);
        let envelope = reply.envelope().unwrap_or_default();
        let request_id = envelope.request_id.to_string();
        let wrapped = self.wanted.wrap.is_some();
        let raw = if wrapped { envelope.wrap_info } else { envelope.data };
        let Some(raw) = raw else {
            // Not "not found": that is for the server to say, and files may be wiped on its word.
            return Err(question.unusable(format!(
                "the server's answer ({}) holds no {}",
                reply.status.as_u16(),
                if wrapped { "wrapping token" } else { "data" }
            )));
        };
        let node = document::parse(raw).map_err(|flaw| question.unusable(format!("its answer {flaw}")))?;
        let terms = (!envelope.lease_id.is_empty()).then(|| Terms {
            id: envelope.lease_id.to_string(),
            duration: Duration::from_secs(envelope.lease_duration),
            renewable: envelope.renewable,
        });
        let versions = &self.store.versions;
        let (node, version, fresh) = if let Some(signing) = signing {
            let node = signing.finish(node).map_err(|error| question.unusable(error))?;
            let fresh = Fresh::Exactly(pki::renew_in(&node, self.store.door.clock.wall()).unwrap_or(MADE));
            let version = versions.of(&node);
            (node, version, fresh)
        } else if wrapped {
            let fresh = Fresh::Exactly(made(number(&node, "ttl")));
            let version = versions.of(&node);
            (node, version, fresh)
        } else {
            self.plain_data(&question, node, envelope.lease_duration)?
        };
        // A credential is the one of its lease, whatever it looks like.
        let version = terms.as_ref().map_or(version, |terms| terms.id.clone());
        Ok(Understood { node, version, fresh, terms, request_id })
    }

    /// The part of the answer that is the secret, and how long it is good for.
    fn plain_data(
        &self,
        question: &Question<'_>,
        node: Node,
        lease_duration: u64,
    ) -> Result<(Node, String, Fresh), Error> {
        let mount = question.mount;
        let below = mount.below(&self.wanted.path);
        let versioned = match mount.engine {
            Engine::KvV2 => below.first() == Some(&"data"),
            Engine::Unknown => below.contains(&"data") && is_versioned(&node),
            Engine::KvV1 | Engine::Pki | Engine::Other(_) => false,
        };
        if versioned && let Node::Map(mut members) = node {
            let metadata = members.remove("metadata").unwrap_or(Node::Null);
            let data = members.remove("data").unwrap_or(Node::Null);
            if data == Node::Null {
                return Err(question.not_found("this version holds no data".to_owned()));
            }
            let created = text(&metadata, "created_time").map(shown).unwrap_or_default();
            let version = versioned_as(number(&metadata, "version").unwrap_or_default(), &created);
            let ends = text(&metadata, "deletion_time").map(shown).unwrap_or_default();
            return Ok((data, version, fresh_until(&ends, self.store.door.clock.wall())));
        }
        let version = self.store.versions.of(&node);
        let fresh = match (&mount.engine, self.wanted.verb()) {
            (Engine::KvV1, _) if lease_duration > 0 => Fresh::AtMost(Duration::from_secs(lease_duration)),
            (Engine::KvV1 | Engine::KvV2, _) => Fresh::AsAsked,
            (_, Verb::Get) => {
                rotates_in(&node).or_else(|| ends_in(&node)).map_or(Fresh::AsAsked, Fresh::AtMost)
            }
            (Engine::Pki, Verb::Post) => {
                let left = pki::renew_in(&node, self.store.door.clock.wall());
                Fresh::Exactly(left.unwrap_or_else(|| made(None)))
            }
            (_, Verb::Post) => {
                let ttl = ["secret_id_ttl", "ttl"].iter().find_map(|name| number(&node, name));
                Fresh::Exactly(made(ttl.or((lease_duration > 0).then_some(lease_duration))))
            }
        };
        Ok((node, version, fresh))
    }
}

/// Whether the document has the shape that a key-value mount of version 2 gives a secret.
fn is_versioned(node: &Node) -> bool {
    let Node::Map(members) = node else { return false };
    members.contains_key("data")
        && members.get("metadata").is_some_and(|metadata| number(metadata, "version").is_some())
}

/// The name of a state of a secret. One that was removed with all its versions starts again at 1, so the number alone
/// does not tell.
pub(super) fn versioned_as(number: u64, created: &str) -> String {
    format!("{number}@{created}")
}

/// Whether a state's name is of [`versioned_as`]; all others are hashes.
pub(super) fn has_versions(name: &str) -> bool {
    name.contains('@')
}

/// How long a version is good for that is deleted at `ends`; empty: never.
pub(super) fn fresh_until(ends: &str, now: SystemTime) -> Fresh {
    humantime::parse_rfc3339(ends).map_or(Fresh::AsAsked, |ends| {
        Fresh::AtMost(ends.duration_since(now).unwrap_or_default() + AFTER_ROTATION)
    })
}

/// Times and names that the server set, none of them secret.
fn shown(text: &Secret) -> String {
    String::from_utf8_lossy(text.expose()).into_owned()
}

/// When a credential that the server rotates by itself is to be read again: right after it did.
fn rotates_in(node: &Node) -> Option<Duration> {
    text(node, "last_vault_rotation").or_else(|| text(node, "last_openbao_rotation"))?;
    let left = Duration::from_secs(number(node, "ttl")?);
    Some(left + AFTER_ROTATION + Duration::from_millis(rand::rng().random_range(0..2000)))
}

/// When a token that ends without having a lease is to be read again (GCP's engine, "Generate `OAuth2` access token").
fn ends_in(node: &Node) -> Option<Duration> {
    text(node, "token")?;
    number(node, "token_ttl").map(|ttl| made(Some(ttl)))
}

/// When something that was made for a pod is made anew: at about two thirds of its life.
fn made(ttl: Option<u64>) -> Duration {
    let life = ttl.filter(|ttl| *ttl > 0).map_or(MADE, Duration::from_secs);
    life.mul_f64(rand::rng().random_range(0.6..=0.667))
}
