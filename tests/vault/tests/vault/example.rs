//! The pod of the page: the three references that most people come for.

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, eventually};
use countersign_tests::reader::{read, read_file};
use countersign_vault_tests::world::{Plan, in_world, pod};
use serde_json::Value;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("example::the_page_leads_to_its_pod", Needs::Root, the_page_leads_to_its_pod),
        case("example::a_change_arrives", Needs::Root, a_change_arrives),
    ]
}

async fn the_page_leads_to_its_pod() -> Result<()> {
    in_world(Plan { database: true, ..Plan::default() }, async |world| {
        let mut volume = world.node.published(&pod(), world.example()?).await?;
        let files = read(&volume.target())?;
        ensure!(files["db-password"] == b"first-password", "the password, to the byte");

        let certificate: Value = serde_json::from_slice(&files["cert.json"])?;
        let field = |name: &str| certificate[name].as_str().with_context(|| format!("{name} is a text"));
        ensure!(field("certificate")?.starts_with("-----BEGIN CERTIFICATE-----"), "a certificate");
        ensure!(field("private_key")?.starts_with("-----BEGIN PRIVATE KEY-----"), "its key");

        let environment = String::from_utf8(files["db.env"].clone())?;
        let variable = |name: &str| {
            let line = environment.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(str::to_owned).with_context(|| format!("{name} in db.env"))
        };
        let (user, password) = (variable("PGUSER")?, variable("PGPASSWORD")?);
        let postgres = world.postgres.as_ref().context("PostgreSQL")?;
        ensure!(postgres.sql_as(&user, &password, "SELECT current_user")? == user, "they open the database");
        ensure!(postgres.dynamic_users()? == [user.clone()], "one read made one user");

        // Vault's own word for who asked.
        let reads = world.vault.audit()?;
        let read = reads.iter().find(|entry| entry.reads("kv/data/payments")).context("an audit entry")?;
        let who = &read.auth.display_name;
        ensure!(who.contains("spiffe://example.org/ns/payments/sa/api"), "the audit log names {who}");

        volume.unpublish(SOON).await?;
        eventually(SOON, "the database user goes with the pod", async || {
            postgres.dynamic_users().is_ok_and(|users| users.is_empty())
        })
        .await?;
        ensure!(
            postgres.sql_as(&user, &password, "SELECT 1").is_err(),
            "its password opens nothing any longer"
        );
        Ok(())
    })
    .await
}

async fn a_change_arrives() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let asked = super::asking::one("vault:kv/data/payments#password").refresh("1s");
        let mut volume = world.node.published(&pod(), asked).await?;
        for value in ["second-password", "third-password"] {
            let data = serde_json::json!({"data": {"password": value}});
            world.vault.root().write("kv/data/payments", &data).await?;
            world.node.arrives(&volume, "a", value).await?;
        }
        ensure!(read_file(&volume.target(), "a")? == "third-password", "the last one stays");
        volume.unpublish(SOON).await
    })
    .await
}
