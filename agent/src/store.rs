//! Where secrets are: one enum over the kinds of stores, one call to fetch.

pub mod allow;
pub mod config;
pub mod sops;
pub mod vault;

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::Error;
use crate::secret::Node;
use crate::sources::{Ask, Mint, Stale};

use config::StoreConfig;
use sops::SopsStore;
use tokio_util::sync::CancellationToken;
use vault::VaultStore;

/// What a store answered.
#[derive(Debug)]
pub enum Answer {
    /// The secret.
    Secret(Fetched),
    /// The secret that was handed out before, which is good yet: it was looked after, not read again.
    Kept(Fetched),
    /// It is one that volumes must not share: to be asked for again, alone.
    Apart,
}

/// A secret as a store gave it.
#[derive(Debug)]
pub struct Fetched {
    /// The secret.
    pub document: Arc<Node>,
    /// The store's word for this state of it: equal versions mean equal documents.
    pub version: String,
    /// How long it is good for.
    pub fresh: Fresh,
    /// The store's own name for the request that got it, by which its audit log has it too.
    pub request_id: Option<String>,
}

/// How long an answer is good for before the store is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    /// As long as the pod says.
    AsAsked,
    /// As long as the pod says, and never longer than this.
    AtMost(Duration),
    /// Just as long as this, whatever the pod says.
    Exactly(Duration),
}

/// What keeps an answer alive at its store: a login, a lease. When the last of its clones goes, what it stands for
/// is given back.
#[derive(Debug, Clone)]
pub enum Held {
    /// Of a store of Vault's kind.
    Vault(vault::Holding),
}

impl Held {
    /// Whether the store tells of changes by itself, in words; none: it was not asked to.
    pub(crate) fn told(&self) -> Option<String> {
        match self {
            Self::Vault(holding) => holding.told(),
        }
    }
}

/// A store by its kind.
#[derive(Debug, Clone)]
pub enum Store {
    /// A directory of SOPS files.
    Sops(SopsStore),
    /// A Vault or `OpenBao`.
    Vault(VaultStore),
}

impl Store {
    /// Opens the store that the configuration calls `name`, and checks what can be checked before anybody asks.
    ///
    /// # Errors
    /// [`Error::Unusable`] when its directory or its key cannot be used as configured.
    pub fn open(
        name: &str,
        config: StoreConfig,
        clock: Clock,
        meters: &vault::Families,
    ) -> Result<Self, Error> {
        match config {
            StoreConfig::Sops(config) => SopsStore::open(name, config, clock).map(Self::Sops),
            StoreConfig::Vault(config) => VaultStore::open(name, *config, clock, meters).map(Self::Vault),
        }
    }

    /// The secret that `ask` names, as its caller may read it. `held` is what the store left there with the last
    /// answer to the same.
    ///
    /// # Errors
    /// [`Error::Request`] for an option or version that the store does not have, [`Error::Denied`] and
    /// [`Error::NotFound`] as the store decides, [`Error::Unusable`] for what is there but broken, and
    /// [`Error::StoreUnavailable`] for what may be well again later.
    pub async fn fetch<M: Mint>(
        &self,
        mint: &M,
        ask: Ask<'_>,
        held: &mut Option<Held>,
    ) -> Result<Answer, Error> {
        match self {
            Self::Sops(store) => {
                store.fetch(&ask.caller.identity.spiffe_id, ask.source).await.map(Answer::Secret)
            }
            Self::Vault(store) => store.fetch(mint, ask, held).await,
        }
    }

    /// The next secret that the store reports as changed; never, where it reports nothing.
    pub async fn stale(&self) -> Stale {
        match self {
            Self::Sops(_) => std::future::pending().await,
            Self::Vault(store) => store.stale().await,
        }
    }

    /// What the store does of its own accord, until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        match self {
            Self::Sops(_) => shutdown.cancelled().await,
            Self::Vault(store) => store.run(shutdown).await,
        }
    }
}
