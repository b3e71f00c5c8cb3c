//! Events at servers that have none: said once, and everything else goes on. Servers that have them cannot be had; the
//! agent's own tests have a stand-in for one.

use anyhow::{Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, eventually};
use countersign_vault_tests::server::Kind;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::{Map, Value, json};

use crate::asking::{one, pod};
use crate::refusals::permit;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("events::vault_community_has_none", Needs::Root, vault_community_has_none),
        case("events::openbao_has_none", Needs::Root, openbao_has_none),
        case("events::who_may_not_listen_is_told_the_stanza", Needs::Root, who_may_not_listen),
    ]
}

const PASSWORD: &str = "vault:kv/data/payments#password";
const LISTEN: &str = "sys/events/subscribe/kv*";

fn plan(server: Kind, login: Value) -> Plan {
    let store = Map::from_iter([("events".to_owned(), json!(true)), ("login".to_owned(), login)]);
    Plan { server, store, ..Plan::default() }
}

async fn vault_community_has_none() -> Result<()> {
    has_none(plan(Kind::Vault, json!({"role": "{ns}_{sa}"}))).await
}

async fn openbao_has_none() -> Result<()> {
    has_none(plan(Kind::OpenBao, json!({"role": "{ns}_{sa}", "inline": "never"}))).await
}

/// Two identities listen: there is one line in the log.
async fn has_none(plan: Plan) -> Result<()> {
    in_world(plan, async |world| {
        permit(world, &["kv/*", LISTEN]).await?;
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD).refresh("1s")).await?;
        let said = async || lines(world, "tells nobody of changes") == 1;
        eventually(SOON, "the log says why", said).await?;
        world.vault.root().write("kv/data/payments", &json!({"data": {"password": "second"}})).await?;
        world.node.arrives(&volume, "a", "second").await?;
        ensure!(lines(world, "tells nobody of changes") == 1, "once");
        let open = world.node.metrics().await?.sum("countersign_vault_event_streams_open", &[]);
        ensure!(open.unwrap_or_default() < 0.5, "none is open");
        volume.unpublish(SOON).await
    })
    .await
}

async fn who_may_not_listen() -> Result<()> {
    in_world(plan(Kind::Vault, json!({"role": "{ns}_{sa}"})), async |world| {
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD)).await?;
        let said = async || lines(world, "path \\\"sys/events/subscribe/kv*\\\"") == 1;
        eventually(SOON, "the log has the stanza", said).await?;
        volume.unpublish(SOON).await
    })
    .await
}

/// How many lines of the agent's log hold this.
fn lines(world: &World, what: &str) -> usize {
    let log = std::fs::read_to_string(world.node.layout.log("agent")).unwrap_or_default();
    log.lines().filter(|line| line.contains(what)).count()
}
