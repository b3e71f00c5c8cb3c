//! Where secrets are: one enum over the kinds of stores, one call to fetch.

pub mod allow;
pub mod config;
pub mod sops;

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::Error;
use crate::identity::Identity;
use crate::request::Source;
use crate::secret::Node;

use config::StoreConfig;
use sops::SopsStore;

/// What a store answered.
#[derive(Debug)]
pub struct Fetched {
    /// The secret.
    pub document: Arc<Node>,
    /// The store's word for this state of it: equal versions mean equal documents.
    pub version: String,
    /// How long it is good for, where the store knows better than the pod.
    pub fresh_for: Option<Duration>,
}

/// A store by its kind.
#[derive(Debug)]
pub enum Store {
    /// A directory of SOPS files.
    Sops(SopsStore),
}

impl Store {
    /// Opens the store that the configuration calls `name`, and checks what can be checked before anybody asks.
    ///
    /// # Errors
    /// [`Error::Unusable`] when its directory or its key cannot be used as configured.
    pub fn open(name: &str, config: StoreConfig, clock: Clock) -> Result<Self, Error> {
        match config {
            StoreConfig::Sops(config) => SopsStore::open(name, config, clock).map(Self::Sops),
        }
    }

    /// The secret that `source` names, as `identity` may read it.
    ///
    /// # Errors
    /// [`Error::Request`] for an option or version that the store does not have, [`Error::Denied`] and
    /// [`Error::NotFound`] as the store decides, [`Error::Unusable`] for what is there but broken, and
    /// [`Error::StoreUnavailable`] for what may be well again later.
    pub async fn fetch(&self, identity: &Identity, source: &Source) -> Result<Fetched, Error> {
        match self {
            Self::Sops(store) => store.fetch(&identity.spiffe_id, source).await,
        }
    }
}
