//! Canaries: values, passwords, keys and tokens are looked for wherever they must not be.

use std::fs;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::http::get_ok;
use countersign_tests::node::{SOON, Setup};
use countersign_tests::reader::read;
use countersign_vault_tests::world::{Plan, in_world};
use serde_json::{Value, json};

use crate::asking::{one, pod};
use crate::refusals::permit;

pub(crate) fn cases() -> Vec<Case> {
    vec![case(
        "secrecy::nothing_secret_is_where_it_must_not_be",
        Needs::Root,
        nothing_secret_is_where_it_must_not_be,
    )]
}

const SECRET: &str = "CANARY-8b1f02d7";

async fn nothing_secret_is_where_it_must_not_be() -> Result<()> {
    let node = Setup { log_level: "trace", agent_arguments: vec!["--audit".into()], ..Setup::default() };
    in_world(Plan { node, database: true, ..Plan::default() }, async |world| {
        permit(world, &["kv/*"]).await?;
        let root = world.vault.root();
        root.write("kv/data/payments", &json!({"data": {"password": SECRET, "deep": {"x": SECRET}}})).await?;
        let asked =
            world.example()?.secret("wrapped", "vault:kv/data/payments#token?vault.wrap=5m").refresh("1s");
        let mut volume = world.node.published(&pod("api-1"), asked).await?;
        let files = read(&volume.target())?;
        ensure!(files["db-password"] == SECRET.as_bytes(), "what is looked for is there to be found");
        let text = |name: &str| String::from_utf8(files[name].clone());
        let certificate: Value = serde_json::from_slice(&files["cert.json"])?;
        let key = certificate["private_key"].as_str().context("a key")?;
        let environment = text("db.env")?;
        // Vault's tokens and JWTs are known by how they begin, whichever they are.
        let mut canaries: Vec<String> =
            [SECRET, "hvs.", "hvb.", "eyJ"].iter().map(|&canary| canary.to_owned()).collect();
        canaries.push(text("wrapped")?);
        canaries.push(key.lines().nth(1).context("a body")?.to_owned());
        canaries.push(
            environment.lines().last().and_then(|l| l.split_once('=')).context("a password")?.1.to_owned(),
        );

        let mut places = Vec::new();
        for reference in [
            "vault:kv/data/payments#nothing",
            "vault:kv/data/payments#/deep/y",
            "vault:kv/data/none#x",
            "vault:kv/data/payments#password?encoding=base64",
            "vault:kv/payments",
            "vault:auth/token/lookup-self#nothing",
        ] {
            let mut refused = world.node.volume(&pod("api-2"), one(reference));
            let status = refused.publish_once().await.err().with_context(|| reference.to_owned())?;
            places.push((format!("the answer to {reference}"), status.message().to_owned()));
            refused.unpublish(SOON).await?;
        }
        // Trouble of every kind: tokens that are gone, a server that is.
        world.vault.kill()?;
        let mut waiting = world.node.volume(&pod("api-3"), one("vault:kv/data/payments#password?version=1"));
        let status = waiting.publish_once().await.err().context("there is no Vault")?;
        places.push(("the answer without Vault".to_owned(), status.message().to_owned()));
        world.vault.resume().await?;
        waiting.unpublish(SOON).await?;
        let second = json!({"data": {"password": format!("{SECRET}-2")}});
        world.vault.root().write("kv/data/payments", &second).await?;
        world.node.arrives(&volume, "db-password", &format!("{SECRET}-2")).await?;
        volume.unpublish(SOON).await?;

        for process in [&world.node.driver, &world.node.agent].into_iter().flatten() {
            places.push((format!("the log of {}", process.name()), fs::read_to_string(process.log())?));
        }
        for path in ["/metrics", "/readyz"] {
            places.push((path.to_owned(), get_ok(world.node.agent_http, path).await?));
        }
        ensure!(!places.iter().any(|(_, text)| text.is_empty()), "a place says nothing");
        for (place, text) in &places {
            for canary in &canaries {
                if let Some(at) = text.find(canary.as_str()) {
                    let kind = &canary[..canary.len().min(4)];
                    let line = text[..at].lines().count();
                    anyhow::bail!("something secret ({kind}…) is in {place}, line {line}");
                }
            }
        }
        Ok(())
    })
    .await
}
