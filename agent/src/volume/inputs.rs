//! What a volume's files are made from.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::Error;
use crate::identity::{Identity, JwtSvid};
use crate::render::Material;
use crate::request::Source;
use crate::secret::Node;
use crate::store::Held;

/// Everything that a volume's files are made from. Held, so that equal pointers mean equal contents.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    pub(crate) secrets: HashMap<Source, Result<Arc<Node>, Error>>,
    /// What keeps them alive at their stores, for as long as files are made from them.
    pub(crate) held: HashMap<Source, Held>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) jwts: HashMap<String, Result<Arc<JwtSvid>, Error>>,
    /// What the files made from this lack, and why.
    pub(crate) lacking: Option<Lacking>,
}

/// Files that were left out because what they are made from was withdrawn and the pod wants it so, or that stayed as they
/// were because they could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lacking {
    /// How many were left out.
    pub(crate) files: usize,
    /// The first reason.
    pub(crate) error: Error,
    /// Secrets that are not as the files show them: those stayed, and all that are made from the same.
    pub(crate) unshown: BTreeSet<Source>,
}

impl Inputs {
    /// Whether rendering `other` could not give other bytes.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let secret =
            |(source, one): (&Source, &Result<Arc<Node>, Error>)| match (one, other.secrets.get(source)) {
                (Ok(one), Some(Ok(two))) => Arc::ptr_eq(one, two),
                (Err(one), Some(Err(two))) => one == two,
                _ => false,
            };
        let jwt = |(audience, one): (&String, &Result<Arc<JwtSvid>, Error>)| match (
            one,
            other.jwts.get(audience),
        ) {
            (Ok(one), Some(Ok(two))) => Arc::ptr_eq(one, two),
            (Err(one), Some(Err(two))) => one == two,
            _ => false,
        };
        Arc::ptr_eq(&self.identity.x509, &other.identity.x509)
            && self.secrets.len() == other.secrets.len()
            && self.secrets.iter().all(secret)
            && self.jwts.len() == other.jwts.len()
            && self.jwts.iter().all(jwt)
    }

    /// Whether the files made from this show a secret as it was at some time before.
    pub(crate) fn is_unshown(&self, source: &Source) -> bool {
        self.lacking.as_ref().is_some_and(|lacking| lacking.unshown.contains(source))
    }

    /// Goes on lacking what `before` does, files and all.
    pub(crate) fn lack_as(&mut self, before: &Self) {
        self.lacking.clone_from(&before.lacking);
        if let Some(lacking) = &before.lacking {
            self.hold_as(before, &lacking.unshown);
        }
    }

    /// Keeps alive what files show of `sources`: what `before` kept alive.
    pub(crate) fn hold_as(&mut self, before: &Self, sources: &BTreeSet<Source>) {
        let held = |source: &Source| Some((source.clone(), before.held.get(source)?.clone()));
        self.held.extend(sources.iter().filter_map(held));
    }
}

impl Material for Inputs {
    fn secret(&self, source: &Source) -> Option<Result<Arc<Node>, Error>> {
        self.secrets.get(source).cloned()
    }

    fn identity(&self) -> Option<&Identity> {
        Some(&self.identity)
    }

    fn jwt(&self, audience: &str) -> Option<Result<Arc<JwtSvid>, Error>> {
        self.jwts.get(audience).cloned()
    }
}
