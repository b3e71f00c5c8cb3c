//! Everything together: a Vault that was set up as `docs/vault.md` has it, and a node whose pods log in to it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value, json};

use countersign_tests::node::{Node, Setup};
use countersign_tests::pods::{Pod, Volume};

use crate::authority::Authority;
use crate::ingress::Ingress;
use crate::page::{Page, Shell};
use crate::postgres::Postgres;
use crate::server::{Kind, Storage, Vault};

/// Name of the store in every run.
pub const STORE: &str = "vault";
/// The address the pages give Vault.
const PAGE_ADDRESS: &str = "https://vault.example.org:8200";
/// The file the pages give for the roots of Vault's certificate.
const PAGE_CA: &str = "/etc/countersign/vault/ca.pem";

/// What a world is made of.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Whose server.
    pub server: Kind,
    /// What is in the server's environment.
    pub environment: Vec<(&'static str, &'static str)>,
    /// The node.
    pub node: Setup,
    /// Whether there is a PostgreSQL, and everything else on the page that needs one.
    pub database: bool,
    /// What is different in the store's configuration: keys that replace the page's; null removes one.
    pub store: Map<String, Value>,
    /// Addresses to be tried before the real one.
    pub more_addresses: Vec<String>,
    /// Whether Vault keeps all it knows in that PostgreSQL: standbys of it then forward nothing.
    pub shared_storage: bool,
}

/// All of it. It ends when it is dropped, Vault last.
#[derive(Debug)]
pub struct World {
    /// The node.
    pub node: Node,
    /// PostgreSQL, where it was asked for.
    pub postgres: Option<Postgres>,
    /// Vault.
    pub vault: Vault,
    /// How the issuer's keys are reached from outside.
    pub ingress: Ingress,
    /// The authority of the ingress.
    pub ingress_authority: Authority,
    page: Page,
}

impl World {
    /// Starts everything, in the order an operator would.
    pub async fn start(plan: Plan) -> Result<Self> {
        let (vault, postgres) = servers(&plan).await?;
        let page = Page::read("vault.md")?;
        let mut setup = plan.node;
        let mut addresses = plan.more_addresses;
        addresses.push(vault.url());
        let store = store(&page, &addresses, &vault.ca(), &plan.store)?;
        setup.stores.insert(STORE.to_owned(), store);
        let mut node = Node::new(setup)?;
        node.start_issuer().await?;
        let ingress_authority = Authority::new("ingress test authority")?;
        let ingress = Ingress::start(&ingress_authority, node.issuer_http).await?;
        let world = Self { node, postgres, vault, ingress, ingress_authority, page };
        world.set_up().map_err(|error| anyhow!("{error:#}\n{}", world.said()))?;
        Ok(world)
    }

    /// Starts agent and driver, which makes a node of it.
    pub async fn start_node(&mut self) -> Result<()> {
        self.node.start_agent().await?;
        self.node.start_driver().await
    }

    /// What the commands of the page find around them.
    pub fn shell(&self) -> Result<Shell> {
        let ca = self.ingress_authority.write(&self.vault.directory().join("ingress-ca.pem"))?;
        let mut shell = Shell::default()
            .with_path(&self.vault.on_path()?)
            .with("VAULT_ADDR", self.vault.url())
            .with("VAULT_CACERT", self.vault.ca().display().to_string())
            .with("VAULT_TOKEN", self.vault.root_token())
            .with("JWKS_URL", format!("{}/keys", self.ingress.url()))
            .with("JWKS_CA", ca.display().to_string());
        if let Some(postgres) = &self.postgres {
            shell = shell
                .with("PG_ADDRESS", postgres.address().to_string())
                .with("PG_PASSWORD", postgres.password())
                .with("PG_SSLMODE", "disable");
        }
        Ok(shell)
    }

    /// Runs the page's commands: the very ones.
    fn set_up(&self) -> Result<()> {
        let shell = self.shell()?;
        for heading in ["The login, once a cluster", "A workload", "Secrets to try it with"] {
            self.run(&shell, heading)?;
        }
        if self.postgres.is_some() {
            self.run(&shell, "A database")?;
        }
        self.run(&shell, "Certificates")
    }

    /// Runs all commands under a heading of the page.
    pub fn run(&self, shell: &Shell, heading: &str) -> Result<()> {
        for block in self.page.under(heading, "sh")? {
            shell.run(self.vault.directory(), &block.text).context(heading.to_owned())?;
        }
        Ok(())
    }

    /// The volume that the page gives as its example.
    pub fn example(&self) -> Result<Volume> {
        let attributes = self.page.yaml("A pod", "volumeAttributes")?;
        let attributes: BTreeMap<String, String> = serde_json::from_value(attributes)?;
        Ok(Volume { attributes, ..Volume::new() })
    }

    /// The ends of all logs.
    pub fn said(&self) -> String {
        format!("{}\n{}", self.node.said(), self.vault.said())
    }
}

async fn servers(plan: &Plan) -> Result<(Vault, Option<Postgres>)> {
    if plan.shared_storage {
        let postgres = Postgres::start().await?;
        let storage = Storage::Shared(postgres.for_vault()?);
        return Ok((Vault::start(plan.server, &plan.environment, storage).await?, Some(postgres)));
    }
    let postgres = async { if plan.database { Postgres::start().await.map(Some) } else { Ok(None) } };
    tokio::try_join!(Vault::start(plan.server, &plan.environment, Storage::Raft), postgres)
}

/// The pod that the page speaks of.
pub fn pod() -> Pod {
    Pod::new("payments", "api-1", "api")
}

/// The page's own configuration of the store, with a real address in place of the one it gives.
fn store(page: &Page, addresses: &[String], ca: &Path, other: &Map<String, Value>) -> Result<Value> {
    let stores = page.yaml("The store", "stores")?;
    let mut store = stores.get(STORE).cloned().with_context(|| format!("no store {STORE}"))?;
    let store_map = store.as_object_mut().context("a store is a map")?;
    let written = store_map.insert("addresses".to_owned(), json!(addresses));
    anyhow::ensure!(written == Some(json!([PAGE_ADDRESS])), "the page's address: {written:?}");
    let written = store_map.insert("caFile".to_owned(), json!(ca));
    anyhow::ensure!(written == Some(json!(PAGE_CA)), "the page's file of roots: {written:?}");
    for (key, value) in other {
        if value.is_null() {
            store_map.remove(key);
        } else {
            store_map.insert(key.clone(), value.clone());
        }
    }
    Ok(store)
}

/// Runs `body` in a world, sees that nothing is left on the node, and shows the logs when something went wrong.
pub async fn in_world(plan: Plan, body: impl AsyncFnOnce(&mut World) -> Result<()>) -> Result<()> {
    let mut world = World::start(plan).await?;
    let outcome = async {
        world.start_node().await?;
        body(&mut world).await?;
        world.node.is_clean().await.context("after the test")
    };
    outcome.await.map_err(|error| anyhow!("{error:#}\n{}", world.said()))
}
