//! What files are made from when some of it will not do: the secrets of now, and of those that will not do what they were
//! when files were last made from them.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Error;
use crate::identity::{Identity, JwtSvid};
use crate::render::{Material, Rendered, render};
use crate::request::{FileSpec, Source};
use crate::secret::Node;
use crate::volume::Inputs;

/// Of more secrets that have changed it is not tried which one is to blame: a rendering may take its time.
const TRIED: usize = 8;

/// Secrets of now and of before, none of them both.
pub(super) struct Mixture<'i> {
    now: &'i Inputs,
    /// Of the same identity: what was read by another is not shown to this one.
    before: Option<&'i Inputs>,
    older: BTreeSet<Source>,
}

impl<'i> Mixture<'i> {
    /// All as it is `now`. `written` is what the files in the directory were made from, if that is known.
    pub(super) fn new(now: &'i Inputs, written: Option<&'i Inputs>) -> Self {
        let before = written.filter(|before| before.identity.spiffe_id == now.identity.spiffe_id);
        Self { now, before, older: BTreeSet::new() }
    }

    /// Makes these as they were before, too.
    pub(super) fn revert(&mut self, sources: &BTreeSet<Source>) {
        self.older.extend(sources.iter().cloned());
    }

    /// Those that are as they were before.
    pub(super) fn into_older(self) -> BTreeSet<Source> {
        self.older
    }

    /// Which secrets have to be as they were before for `spec` to be made: one, if that is enough, so that the others
    /// show what they are now; else all that have changed. None: they all are as they were, or it is not known.
    pub(super) fn remedy(&mut self, spec: &FileSpec, limit: u64) -> Option<BTreeSet<Source>> {
        let changed: BTreeSet<Source> = spec.sources().filter(|source| self.has_changed(source)).collect();
        let tried = if changed.len() <= TRIED { changed.len() } else { 0 };
        let mut alone = changed.iter().take(tried).filter(|source| {
            self.older.insert((*source).clone());
            let rendered = render(spec, &*self, limit);
            self.older.remove(*source);
            matches!(rendered, Ok(Rendered::File(_) | Rendered::Omitted))
        });
        let alone = alone.next().map(|source| BTreeSet::from([source.clone()]));
        alone.or_else(|| (!changed.is_empty()).then_some(changed))
    }

    /// Whether a secret is another than files were last made from, and those show it.
    fn has_changed(&self, source: &Source) -> bool {
        let Some(before) = self.before.filter(|before| !before.is_unshown(source)) else { return false };
        !self.older.contains(source)
            && match (self.now.secrets.get(source), before.secrets.get(source)) {
                (Some(Ok(now)), Some(Ok(before))) => !Arc::ptr_eq(now, before),
                (Some(now), Some(before)) => now.as_ref().err() != before.as_ref().err(),
                (None, _) | (_, None) => false,
            }
    }
}

impl Material for Mixture<'_> {
    fn secret(&self, source: &Source) -> Option<Result<Arc<Node>, Error>> {
        let inputs = self.before.filter(|_| self.older.contains(source)).unwrap_or(self.now);
        inputs.secret(source)
    }

    fn identity(&self) -> Option<&Identity> {
        self.now.identity()
    }

    fn jwt(&self, audience: &str) -> Option<Result<Arc<JwtSvid>, Error>> {
        self.now.jwt(audience)
    }
}
