//! What kind of server it is, by its own word: whether it lets a read bring its login along.

use std::time::Duration;

use http::Method as Verb;
use serde::Deserialize;

use super::Inner;
use super::client::{Call, Credential};
use super::config::{Inline, Method, Namespace};

/// What a server said of itself is believed for this long.
const KIND_AGE: Duration = Duration::from_secs(3600);

/// What a server says of itself at `sys/health`.
#[derive(Deserialize)]
struct Health {
    #[serde(default)]
    version: String,
    /// Vault says whether it is its Enterprise edition; `OpenBao`, which has no editions, does not.
    enterprise: Option<bool>,
}

impl Inner {
    /// Whether plain reads log in and read at once.
    pub(super) async fn inline(&self) -> bool {
        match (self.door.login.method, self.door.login.inline) {
            (Method::Inline, _) => return true,
            (Method::Jwt, Inline::Auto) => {}
            (Method::Jwt | Method::Cert | Method::Spiffe, _) => return false,
        }
        let mut known = self.inline.lock().await;
        let now = self.door.clock.now();
        if let Some((inline, at)) = *known
            && now.duration_since(at) < KIND_AGE
        {
            return inline;
        }
        let call = Call {
            method: &Verb::GET,
            path: "sys/health?standbyok=true&perfstandbyok=true",
            namespace: &Namespace::default(),
            credential: Credential::None,
            wrap: None,
            body: None,
            repeatable: true,
        };
        let Ok(reply) = self.door.client.call(call).await else { return false };
        let health = serde_json::from_slice::<Health>(&reply.body).ok();
        let inline = health.as_ref().is_some_and(offers_inline);
        if let Some(health) = health {
            tracing::info!(
                store = &*self.name,
                version = health.version,
                inline,
                "the server says what it is"
            );
        }
        *known = Some((inline, now));
        inline
    }
}

/// `OpenBao` from 2.4 on. Its health names a version as Vault's does, and even Vault's replication, but no edition.
fn offers_inline(health: &Health) -> bool {
    let mut numbers = health.version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    health.enterprise.is_none() && version >= (2, 4)
}
