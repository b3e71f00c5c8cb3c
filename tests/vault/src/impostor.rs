//! A node whose store is a server that lies.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value, json};

use countersign_tests::node::{Node, Setup};
use countersign_tests::scratch::Scratch;

use crate::authority::Authority;
use crate::liar::Liar;
use crate::world::STORE;

/// A node that takes a liar for its Vault.
#[derive(Debug)]
pub struct Impostor {
    /// The node.
    pub node: Node,
    /// The server.
    pub liar: Liar,
    /// The file with the roots it is known by.
    pub ca: PathBuf,
    _directory: Scratch,
}

/// The least that a store needs: where, by whom certified, and how to log in.
pub fn store(url: &str, ca: &Path) -> Map<String, Value> {
    let mut store = Map::new();
    store.insert("type".to_owned(), json!("vault"));
    store.insert("addresses".to_owned(), json!([url]));
    store.insert("caFile".to_owned(), json!(ca));
    store.insert("login".to_owned(), json!({"role": "{ns}_{sa}"}));
    store
}

/// Runs `body` on a node that takes `liar` for its Vault, by the roots of `authority`; `change` has the last word
/// on the store's configuration.
pub async fn on_impostor(
    liar: Liar,
    authority: &Authority,
    change: impl FnOnce(&mut Map<String, Value>),
    body: impl AsyncFnOnce(&mut Impostor) -> Result<()>,
) -> Result<()> {
    let directory = Scratch::new()?;
    let ca = authority.write(&directory.path().join("ca.pem"))?;
    let mut store = store(&liar.url(), &ca);
    change(&mut store);
    let mut setup = Setup::default();
    setup.stores.insert(STORE.to_owned(), Value::Object(store));
    let mut impostor = Impostor { node: Node::start(setup).await?, liar, ca, _directory: directory };
    let outcome = async {
        body(&mut impostor).await?;
        impostor.node.is_clean().await.context("after the test")
    };
    outcome.await.map_err(|error| anyhow!("{error:#}\n{}", impostor.node.said()))
}
