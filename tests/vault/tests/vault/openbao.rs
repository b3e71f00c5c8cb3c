//! A real OpenBao: what it alone has, and that all the rest is as at Vault.

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, eventually};
use countersign_tests::reader::read_file;
use countersign_vault_tests::audit::Entry;
use countersign_vault_tests::server::Kind;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::{Map, Value, json};
use tonic::Code;

use crate::asking::{one, pod, refusal, says};
use crate::refusals::permit;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("openbao::reads_without_a_login", Needs::Root, reads_without_a_login),
        case("openbao::the_page_leads_to_its_pod", Needs::Root, the_page_leads_to_its_pod),
        case("openbao::logs_in_where_it_is_told_to", Needs::Root, logs_in_where_it_is_told_to),
        case("openbao::refusals_of_reads_without_a_login", Needs::Root, refusals),
        case("openbao::a_lease_that_nobody_expected", Needs::Root, a_lease_that_nobody_expected),
        case("openbao::an_unchanged_secret_is_not_read_again", Needs::Root, unchanged),
    ]
}

const PASSWORD: &str = "vault:kv/data/payments#password";

fn plan() -> Plan {
    Plan { server: Kind::OpenBao, ..Plan::default() }
}

fn with_login(login: Value) -> Plan {
    Plan { store: Map::from_iter([("login".to_owned(), login)]), ..plan() }
}

fn count(world: &World, what: impl Fn(&Entry) -> bool) -> Result<usize> {
    Ok(world.vault.audit()?.iter().filter(|entry| what(entry)).count())
}

/// Tokens of the jwt mount that OpenBao keeps.
async fn tokens(world: &World) -> Result<usize> {
    let root = world.vault.root();
    let mut found = 0;
    for accessor in root.list("auth/token/accessors").await? {
        let token = root.write("auth/token/lookup-accessor", &json!({"accessor": accessor})).await;
        found += usize::from(token.is_ok_and(|token| token["data"]["path"] == "auth/jwt/login"));
    }
    Ok(found)
}

/// Nobody says so: the server is recognised for what it is.
async fn reads_without_a_login() -> Result<()> {
    in_world(plan(), async |world| {
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD).refresh("1s")).await?;
        ensure!(read_file(&volume.target(), "a")? == "first-password", "the password");
        let audit = world.vault.audit()?;
        let read = audit.iter().find(|entry| entry.reads("kv/data/payments")).context("a read")?;
        let who = &read.auth.display_name;
        ensure!(who.contains("spiffe://example.org/ns/payments/sa/api"), "the audit log names {who}");
        ensure!(tokens(world).await? == 0, "no token is kept there");
        world.vault.root().write("kv/data/payments", &json!({"data": {"password": "second"}})).await?;
        world.node.arrives(&volume, "a", "second").await?;
        ensure!(tokens(world).await? == 0, "nor later");
        volume.unpublish(SOON).await?;
        let given_back = count(world, |entry| entry.asks_for("auth/token/revoke-self"))?;
        ensure!(given_back == 0, "and there is none to give back");
        Ok(())
    })
    .await
}

/// A lease cannot be had without a login: it has one, and ends with its pod.
async fn the_page_leads_to_its_pod() -> Result<()> {
    in_world(Plan { database: true, ..plan() }, async |world| {
        let mut volume = world.node.published(&pod("api-1"), world.example()?).await?;
        ensure!(read_file(&volume.target(), "db-password")? == "first-password", "the password");
        let certificate: Value = serde_json::from_str(&read_file(&volume.target(), "cert.json")?)?;
        ensure!(certificate["private_key"].is_string(), "a key for the certificate");
        let postgres = world.postgres.as_ref().context("PostgreSQL")?;
        let users = postgres.dynamic_users()?;
        let [user] = users.as_slice() else { anyhow::bail!("one user, not {users:?}") };
        let environment = read_file(&volume.target(), "db.env")?;
        ensure!(environment.contains(&format!("PGUSER={user}")), "it is the user of the file");
        ensure!(tokens(world).await? == 1, "one login, of the lease");
        volume.unpublish(SOON).await?;
        let none = async || postgres.dynamic_users().is_ok_and(|users| users.is_empty());
        eventually(SOON, "the user goes with the pod", none).await?;
        ensure!(tokens(world).await? == 0, "and the token with it");
        Ok(())
    })
    .await
}

async fn logs_in_where_it_is_told_to() -> Result<()> {
    in_world(with_login(json!({"role": "{ns}_{sa}", "inline": "never"})), async |world| {
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD)).await?;
        ensure!((count(world, Entry::is_login)?, tokens(world).await?) == (1, 1), "one login, one token");
        volume.unpublish(SOON).await
    })
    .await
}

/// Whether the login was refused or the read can be told, and is.
async fn refusals() -> Result<()> {
    in_world(plan(), async |world| {
        let status = refusal(&world.node, "vault:kv/data/forbidden#x").await?;
        says(&status, Code::PermissionDenied, &["path \"kv/data/forbidden\"", "capabilities"])?;
        permit(world, &["kv/*"]).await?;
        let status = refusal(&world.node, "vault:kv/data/paymnets#password").await?;
        says(&status, Code::NotFound, &["kv/data/paymnets"])?;
        world
            .vault
            .root()
            .send(http::Method::DELETE, "auth/jwt/role/payments_api", bytes::Bytes::new())
            .await?;
        let status = refusal(&world.node, "vault:kv/data/payments#username?version=1").await?;
        says(&status, Code::PermissionDenied, &["payments_api", "could not log in", "auth/jwt/role"])
    })
    .await
}

/// Such an engine mostly has none, and OpenBao makes no lease for a read without a login: so there is a login after all.
async fn a_lease_that_nobody_expected() -> Result<()> {
    in_world(plan(), async |world| {
        permit(world, &["pki/*"]).await?;
        let role = json!({
            "allowed_domains": ["internal"], "allow_subdomains": true, "key_type": "ec", "key_bits": 256,
            "max_ttl": "72h", "generate_lease": true,
        });
        world.vault.root().write("pki/roles/web", &role).await?;
        let asked = one("vault:pki/issue/web#certificate?common_name=pay.internal&ttl=1h");
        let mut volume = world.node.published(&pod("api-1"), asked).await?;
        ensure!(read_file(&volume.target(), "a")?.starts_with("-----BEGIN CERTIFICATE"), "a certificate");
        ensure!(tokens(world).await? == 1, "it has a login of its own");
        let leases = async || world.vault.root().list("sys/leases/lookup/pki/issue/web").await;
        ensure!(leases().await?.len() == 1, "and one lease");
        volume.unpublish(SOON).await?;
        let gone = async || leases().await.is_ok_and(|left| left.is_empty());
        eventually(SOON, "the lease goes with the pod", gone).await
    })
    .await
}

async fn unchanged() -> Result<()> {
    in_world(plan(), async |world| {
        permit(world, &["kv/*"]).await?;
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD).refresh("1s")).await?;
        let looks = async || count(world, |entry| entry.reads("kv/metadata/payments")).is_ok_and(|n| n >= 3);
        eventually(SOON, "three looks at the metadata", looks).await?;
        ensure!(count(world, |entry| entry.reads("kv/data/payments"))? == 1, "and one read of the secret");
        volume.unpublish(SOON).await
    })
    .await
}
