//! What the cache knows of its entries, in words: for an operator, never with a value in it.

use std::fmt::{self, Write as _};
use std::sync::{PoisonError, Weak};

use serde::{Deserialize, Serialize};

use super::Cache;
use crate::request::Source;
use crate::store::Held;

/// What a store answered last to one question of one identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Who asked.
    pub spiffe_id: String,
    /// What, as [`question`] writes it.
    pub question: String,
    /// The volume it was for, where volumes must not share the answer.
    pub volume: Option<String>,
    /// The store's word for the state of the secret that is in use; none: there never was a good answer.
    pub version: Option<String>,
    /// Seconds since that answer, or since the store last said that it holds.
    pub seconds_ago: Option<u64>,
    /// Why the last question got no good answer.
    pub trouble: Option<String>,
    /// Seconds until it is asked again, where there is trouble.
    pub again_in_seconds: Option<u64>,
    /// Whether the store tells of changes by itself, in words, where it was asked to.
    #[serde(default)]
    pub told: Option<String>,
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(volume) = &self.volume {
            write!(f, "for {volume}: ")?;
        }
        let ago = self.seconds_ago.unwrap_or_default();
        let again = self.again_in_seconds.unwrap_or_default();
        match (&self.trouble, &self.version) {
            (None, Some(version)) => write!(f, "version {version}, {ago} s ago"),
            (Some(trouble), None) => write!(f, "NO: {trouble}; asked again in {again} s"),
            (Some(trouble), Some(version)) => write!(
                f,
                "NO: {trouble}; asked again in {again} s; version {version} of {ago} s ago is in use"
            ),
            (None, None) => f.write_str("no answer yet"),
        }?;
        self.told.as_ref().map_or(Ok(()), |told| write!(f, "; {told}"))
    }
}

/// A source as a pod would write it: store, path and what else was asked for.
pub fn question(source: &Source) -> String {
    let mut text = source.to_string();
    let version = source.version.as_deref().map(|version| ("version", version));
    let options = source.options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (number, (name, value)) in version.into_iter().chain(options).enumerate() {
        let before = if number == 0 { '?' } else { '&' };
        // Writing into a string does not fail.
        write!(text, "{before}{name}={value}").unwrap_or_default();
    }
    text
}

impl Cache {
    /// What each entry was answered last, in the order of questions. An entry that is being read at this moment is left
    /// out, and so is one whose answer volumes must not share.
    pub fn answered(&self) -> Vec<Answered> {
        let entries: Vec<_> = {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.values().filter_map(Weak::upgrade).collect()
        };
        let now = self.clock.now();
        let mut all = Vec::new();
        for entry in entries {
            let Ok(state) = entry.state.try_lock() else { continue };
            if state.apart {
                continue;
            }
            let failure = state.failure.as_ref();
            all.push(Answered {
                spiffe_id: entry.key.spiffe_id.to_string(),
                question: question(&entry.key.source),
                volume: entry.key.alone.as_ref().map(ToString::to_string),
                version: state.good.as_ref().map(|good| good.version.clone()),
                seconds_ago: state.good.as_ref().map(|good| now.duration_since(good.read_at).as_secs()),
                trouble: failure.map(|failure| failure.error.to_string()),
                again_in_seconds: failure
                    .map(|failure| failure.retry_at.saturating_duration_since(now).as_secs()),
                told: state.held.as_ref().and_then(Held::told),
            });
        }
        all.sort_by(|a, b| {
            (&a.question, &a.spiffe_id, &a.volume).cmp(&(&b.question, &b.spiffe_id, &b.volume))
        });
        all
    }
}
