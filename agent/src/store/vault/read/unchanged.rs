//! Whether a secret of a key-value mount of version 2 is still the one that was read, by its metadata alone: then the
//! secret itself stays at the server, and no copy of it is made here.
//!
//! Whether the metadata may be read is asked for first (`sys/capabilities-self`, which the default policy allows), so that
//! no look ends as a denial in the server's audit log. Reads without a login cannot ask that, and find out by trying.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use tokio::time::Instant;

use super::Reading;
use super::meaning::{fresh_until, versioned_as};
use super::pass::Pass;
use crate::Error;
use crate::secret::Node;
use crate::sources::Mint;
use crate::store::vault::client::{Call, json_body};
use crate::store::vault::mount::{Engine, Mount};
use crate::store::vault::wanted::{Path, Verb};
use crate::store::{Fetched, Fresh};

/// Of so many looks, one reads the secret itself: its metadata does not show that it may not be read any more.
const LOOKS: u8 = 10;
/// What the server said of our capabilities is believed for this long.
const PERMISSION_AGE: Duration = Duration::from_secs(3600);

/// A secret as it was read, and what has to be known for a look at its metadata. The document is the one that the cache
/// holds as well.
pub(in crate::store::vault) struct Known {
    document: Arc<Node>,
    version: String,
    /// Since the secret itself was read.
    looks: u8,
    permitted: Option<Permitted>,
}

/// Whether the metadata may be read, and when that was found out.
#[derive(Clone, Copy)]
pub(super) struct Permitted(bool, Instant);

impl Known {
    pub(super) fn new(fetched: &Fetched, permitted: Option<Permitted>, before: Option<&Self>) -> Self {
        // One copy in memory, not two.
        let document = match before {
            Some(before) if before.version == fetched.version => &before.document,
            Some(_) | None => &fetched.document,
        };
        Self { document: Arc::clone(document), version: fetched.version.clone(), looks: 0, permitted }
    }

    pub(super) fn fetched(&self, fresh: Fresh) -> Fetched {
        Fetched {
            document: Arc::clone(&self.document),
            version: self.version.clone(),
            fresh,
            request_id: None,
        }
    }
}

/// What a look at the metadata showed.
pub(super) struct Checked {
    /// It is the same secret, good for so long.
    pub(super) unchanged: Option<(Fresh, Arc<Known>)>,
    pub(super) permitted: Option<Permitted>,
}

/// The part of `<mount>/metadata/<path>` that matters here.
#[derive(Deserialize)]
struct Metadata {
    current_version: u64,
    #[serde(default)]
    versions: HashMap<u64, Version>,
}

#[derive(Deserialize)]
struct Version {
    created_time: String,
    #[serde(default)]
    deletion_time: String,
    #[serde(default)]
    destroyed: bool,
}

impl<M: Mint> Reading<'_, M> {
    /// Where the secret's metadata is, if it has any that tells whether it changed.
    pub(super) fn metadata_of(&self, mount: &Mount) -> Option<Path> {
        let wanted = self.wanted;
        let special = wanted.wrap.is_some() || wanted.unwrap.is_some() || !wanted.parameters.is_empty();
        if wanted.verb() != Verb::Get || special {
            return None;
        }
        let (above, below) = match mount.engine {
            Engine::KvV2 => {
                let below = wanted.path.as_str().strip_prefix(mount.path.as_str())?;
                (mount.path.as_str(), below.strip_prefix("/data/")?)
            }
            // As with the secret itself, the path has to tell. Where it tells something else, nothing is there.
            Engine::Unknown => wanted.path.as_str().split_once("/data/")?,
            Engine::KvV1 | Engine::Pki | Engine::Other(_) => return None,
        };
        Some(Path::of(format!("{above}/metadata/{below}")))
    }

    /// Looks at the metadata, where that is allowed and the secret itself is not due to be read.
    pub(super) async fn check(&self, metadata: &Path, known: &Known, pass: &Pass) -> Result<Checked, Error> {
        let now = self.store.door.clock.now();
        let lately = |at: Instant| now.duration_since(at) < PERMISSION_AGE;
        let permitted = match known.permitted {
            Some(Permitted(allowed, at)) if lately(at) => Permitted(allowed, at),
            Some(_) | None => Permitted(self.may_read(metadata, pass).await?, now),
        };
        let changed = |permitted| Ok(Checked { unchanged: None, permitted: Some(permitted) });
        let looks = known.looks.saturating_add(1);
        if !permitted.0 || looks >= LOOKS {
            return changed(permitted);
        }
        let reply = self.get(&metadata.encoded(), pass).await?;
        if matches!(reply.status, http::StatusCode::FORBIDDEN | http::StatusCode::NOT_FOUND) {
            // It is not to be had, whatever was said: it is not asked for again for a while.
            return changed(Permitted(false, now));
        }
        let envelope = reply.envelope().filter(|_| reply.status.is_success());
        let data = envelope.and_then(|envelope| envelope.data);
        let found = data.and_then(|data| serde_json::from_str::<Metadata>(data.get()).ok());
        let Some(fresh) = found.and_then(|found| self.same(found, known)) else { return changed(permitted) };
        let known = Known {
            document: Arc::clone(&known.document),
            version: known.version.clone(),
            looks,
            permitted: Some(permitted),
        };
        Ok(Checked { unchanged: Some((fresh, Arc::new(known))), permitted: Some(permitted) })
    }

    /// How long the known version is good for, if it is the one that a read would answer with.
    fn same(&self, mut found: Metadata, known: &Known) -> Option<Fresh> {
        let number = self.wanted.version.unwrap_or(found.current_version);
        let version = found.versions.remove(&number)?;
        if version.destroyed || known.version != versioned_as(number, &version.created_time) {
            return None;
        }
        let fresh = fresh_until(&version.deletion_time, self.store.door.clock.wall());
        let deleted = !version.deletion_time.is_empty()
            && humantime::parse_rfc3339(&version.deletion_time)
                .map_or(true, |at| at <= self.store.door.clock.wall());
        (!deleted).then_some(fresh)
    }

    /// Whether the server's policies let this identity read the metadata, by its own word.
    async fn may_read(&self, metadata: &Path, pass: &Pass) -> Result<bool, Error> {
        if let Pass::Inline(_) = pass {
            // Asked without a token, the server says nothing of capabilities. To be refused once is all that is left.
            return Ok(true);
        }
        let body = json_body(&serde_json::json!({ "paths": [metadata.as_str()] }));
        let call = Call {
            method: &Method::POST,
            path: "sys/capabilities-self",
            namespace: self.namespace,
            credential: pass.credential(),
            wrap: None,
            body: body.as_ref(),
            repeatable: true,
        };
        let reply = self.store.door.client.call(call).await?;
        let envelope = reply.envelope().filter(|_| reply.status.is_success());
        let capabilities = envelope
            .and_then(|envelope| envelope.data)
            .and_then(|data| serde_json::from_str::<HashMap<String, Vec<String>>>(data.get()).ok())
            .and_then(|mut paths| paths.remove(metadata.as_str()))
            .unwrap_or_default();
        Ok(capabilities.iter().any(|capability| capability == "read" || capability == "root"))
    }
}
