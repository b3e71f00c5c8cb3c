//! What Vault does not give, and what a pod is told.

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::SOON;
use countersign_tests::reader::read;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::json;
use tonic::Code;

use crate::asking::{one, pod, refusal, says, value};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("refusals::each_names_key_cause_and_remedy", Needs::Root, each_names_key_cause_and_remedy),
        case("refusals::gone_is_not_never_there", Needs::Root, gone_is_not_never_there),
        case("refusals::a_policy_that_is_missing_is_spelled_out", Needs::Root, a_missing_policy),
    ]
}

/// Lets the page's workload read everything beneath these mounts.
pub(crate) async fn permit(world: &World, paths: &[&str]) -> Result<()> {
    let root = world.vault.root();
    let policy = root.read("sys/policies/acl/payments-api").await?;
    let text = policy["data"]["policy"].as_str().context("a policy")?;
    let stanza = |path: &&str| format!("\npath \"{path}\" {{ capabilities = [\"read\", \"update\"] }}\n");
    let text = text.to_owned() + &paths.iter().map(stanza).collect::<String>();
    root.write("sys/policies/acl/payments-api", &json!({"policy": text})).await.map(drop)
}

async fn each_names_key_cause_and_remedy() -> Result<()> {
    in_world(Plan::default(), async |world| {
        permit(world, &["kv/*", "kv1/*", "nowhere/*", "database/*"]).await?;
        let root = world.vault.root();
        root.write("sys/mounts/kv1", &json!({"type": "kv", "options": {"version": "1"}})).await?;
        root.write("kv1/payments", &json!({"password": "old"})).await?;
        let table: &[(&str, Code, &[&str])] = &[
            ("vault:kv/data/paymnets#password", Code::NotFound, &["kv/data/paymnets", "no such secret"]),
            ("vault:kv/data/payments#pasword", Code::NotFound, &["pasword", "password", "username"]),
            ("vault:kv/data/payments?version=7", Code::NotFound, &["version 7"]),
            // The path of version 1 on a mount of version 2.
            ("vault:kv/payments#password", Code::NotFound, &["kv/data/payments"]),
            ("vault:nowhere/data/payments", Code::NotFound, &["nowhere"]),
            ("vault:kv/data/payments?version=one", Code::InvalidArgument, &["version"]),
            (
                "vault:kv/data/payments?vault.metod=get",
                Code::InvalidArgument,
                &["vault.metod", "vault.method"],
            ),
        ];
        let mut wrong = Vec::new();
        for (reference, code, fragments) in table {
            let status = refusal(&world.node, reference).await.context((*reference).to_owned())?;
            let text = status.message();
            ensure!(!text.contains("first-password") && !text.contains("hvs."), "a secret in: {text}");
            if let Err(error) = says(&status, *code, fragments) {
                wrong.push(format!("{reference}: {error:#}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        ensure!(value(&world.node, "vault:kv1/payments#password").await? == "old", "version 1 by its path");
        Ok(())
    })
    .await
}

async fn gone_is_not_never_there() -> Result<()> {
    in_world(Plan::default(), async |world| {
        permit(world, &["kv/*"]).await?;
        let root = world.vault.root();
        for version in ["one", "two"] {
            root.write("kv/data/old", &json!({"data": {"x": version}})).await?;
        }
        ensure!(value(&world.node, "vault:kv/data/old#x?version=1").await? == "one", "the first version");
        root.write("kv/delete/old", &json!({"versions": [2]})).await?;
        let status = refusal(&world.node, "vault:kv/data/old#x").await?;
        says(&status, Code::NotFound, &["deleted", "version 2"])?;
        root.write("kv/destroy/old", &json!({"versions": [1]})).await?;
        let status = refusal(&world.node, "vault:kv/data/old#x?version=1").await?;
        says(&status, Code::NotFound, &["destroyed", "version 1"])?;
        // What may be missing is left out.
        let optional = one("vault:kv/data/old#x?optional").secret("b", "vault:kv/data/payments#username");
        let mut volume = world.node.published(&pod("optional"), optional).await?;
        let files = read(&volume.target())?;
        ensure!(files.keys().collect::<Vec<_>>() == ["b"], "{:?}", files.keys());
        volume.unpublish(SOON).await?;
        root.write("kv/undelete/old", &json!({"versions": [2]})).await?;
        ensure!(value(&world.node, "vault:kv/data/old#x").await? == "two", "and back");
        Ok(())
    })
    .await
}

async fn a_missing_policy() -> Result<()> {
    in_world(Plan::default(), async |world| {
        world.vault.root().write("kv/data/other", &json!({"data": {"x": "1"}})).await?;
        let status = refusal(&world.node, "vault:kv/data/other#x").await?;
        says(&status, Code::PermissionDenied, &["path \"kv/data/other\"", "capabilities = [\"read\"]"])?;
        let status = refusal(&world.node, "vault:pki/sign/other?common_name=x.internal").await?;
        says(
            &status,
            Code::PermissionDenied,
            &["path \"pki/sign/other\"", "capabilities = [\"create\", \"update\"]"],
        )?;
        // The stanza that was named is the one that helps.
        permit(world, &["kv/data/other"]).await?;
        ensure!(value(&world.node, "vault:kv/data/other#x").await? == "1", "as the message said");
        Ok(())
    })
    .await
}
