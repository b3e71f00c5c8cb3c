//! The world that is measured: one role for every account of a namespace, and secrets for as many as are asked for.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Map, json};

use countersign_tests::kubelet::PodVolume;
use countersign_tests::node::Setup;
use countersign_tests::pods::{Pod, Volume};

use crate::world::{Plan, World};

/// The role of every account.
const ROLE: &str = "bench";

/// A world in which every account of the namespace `payments` may read everything that is measured.
pub(super) async fn start(database: bool) -> Result<World> {
    let mut world = prepare(database, None).await?;
    world.start_node().await?;
    Ok(world)
}

/// The same before its node is started, with another program in the agent's place if one is named.
pub(super) async fn prepare(database: bool, agent: Option<PathBuf>) -> Result<World> {
    let login = json!({"role": ROLE});
    let store = Map::from_iter([("login".to_owned(), login)]);
    let node = Setup { agent_binary: agent, ..Setup::default() };
    let world = World::start(Plan { node, database, store, ..Plan::default() }).await?;
    let root = world.vault.root();
    let policy =
        "path \"kv/*\" { capabilities = [\"read\"] }\npath \"database/*\" { capabilities = [\"read\"] }";
    root.write("sys/policies/acl/bench", &json!({"policy": policy})).await?;
    let role = json!({
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"], "bound_claims_type": "glob",
        "bound_claims": {"sub": "spiffe://example.org/ns/payments/sa/*"}, "token_policies": ["bench"],
        "token_period": "1h",
    });
    root.write(&format!("auth/jwt/role/{ROLE}"), &role).await?;
    Ok(world)
}

/// Writes a secret with one short field.
pub(super) async fn secret(world: &World, path: &str, value: &str) -> Result<()> {
    let data = json!({"data": {"username": "app", "password": value}});
    world.vault.root().write(&format!("kv/data/{path}"), &data).await.map(drop)
}

/// A pod's volume with files from these secrets.
pub(super) fn volume(world: &World, pod: &str, account: &str, secrets: &[&str], refresh: &str) -> PodVolume {
    let asked = secrets.iter().fold(Volume::new().refresh(refresh), |volume, secret| {
        volume.secret(secret, &format!("vault:kv/data/{secret}#password"))
    });
    world.node.volume(&Pod::new("payments", pod, account), asked)
}
