//! Our audit lines and Vault's, joined by Vault's request id.

use std::fs;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{Node, SOON, Setup};
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::Value;

use crate::asking::{one, pod, refusal};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("audit::our_lines_join_vaults", Needs::Root, our_lines_join_vaults),
        case("audit::off_unless_asked_for", Needs::Root, off_unless_asked_for),
    ]
}

const PASSWORD: &str = "vault:kv/data/payments#password";

/// Our audit lines, whatever else is in the log.
fn lines(node: &Node) -> Result<Vec<Value>> {
    let log = fs::read_to_string(node.agent.as_ref().context("the agent")?.log())?;
    let documents = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(documents.filter(|line| line["target"] == "countersign::audit").collect())
}

async fn our_lines_join_vaults() -> Result<()> {
    let node = Setup { agent_arguments: vec!["--audit".into()], ..Setup::default() };
    in_world(Plan { node, ..Plan::default() }, async |world| {
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD)).await?;
        refusal(&world.node, "vault:kv/data/forbidden#x").await?;
        let ours = lines(&world.node)?;
        let line = |path: &str| {
            let found = ours.iter().find(|line| line["path"] == path);
            found.with_context(|| format!("no audit line for {path} in {ours:?}"))
        };
        let good = line("kv/data/payments")?;
        ensure!(good["spiffe_id"] == "spiffe://example.org/ns/payments/sa/api", "who: {good}");
        ensure!(
            good["pod"] == "payments/api-1" && good["pod_uid"] == volume.pod.uid.as_str(),
            "whose: {good}"
        );
        ensure!(good["store"] == "vault" && good["fields"] == "password,username", "what: {good}");
        // The time tells a secret that was deleted and made anew from the one before.
        let version = good["version"].as_str().unwrap_or_default();
        ensure!(version.starts_with("1@"), "which: {good}");
        ensure!(good["result"] == "ok", "{good}");
        let vaults = joined(world, good)?;
        ensure!(
            vaults.request.path == "kv/data/payments" && vaults.request.operation == "read",
            "{vaults:?}"
        );
        ensure!(vaults.auth.display_name.contains("spiffe://example.org/ns/payments/sa/api"), "{vaults:?}");
        let denied = line("kv/data/forbidden")?;
        ensure!(denied["result"] == "denied", "{denied}");
        ensure!(!format!("{ours:?}").contains("first-password"), "a value in the audit log");
        volume.unpublish(SOON).await
    })
    .await
}

/// Vault's entry for one of our lines.
fn joined(world: &World, line: &Value) -> Result<countersign_vault_tests::audit::Entry> {
    let id = line["request_id"].as_str().context("Vault's request id")?;
    let entries = world.vault.audit()?;
    let mut matching = entries.into_iter().filter(|entry| entry.request.id == id && entry.kind == "response");
    matching.next().with_context(|| format!("Vault has no entry {id}"))
}

async fn off_unless_asked_for() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD)).await?;
        ensure!(lines(&world.node)?.is_empty(), "nobody asked for it");
        volume.unpublish(SOON).await
    })
    .await
}
