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
        case("openbao::a_namespace_of_its_own", Needs::Root, a_namespace_of_its_own),
        case("openbao::a_namespace_that_is_not_there", Needs::Root, a_namespace_that_is_not_there),
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

/// A world whose store is told a namespace, in which nothing is set up yet.
fn in_namespace(name: &str) -> Plan {
    let store = Map::from_iter([("namespace".to_owned(), json!(name))]);
    Plan { store, ..plan() }
}

/// Everything that the page has an operator do, in a namespace: the login, a secret, and certificates with leases.
async fn a_namespace_of_its_own() -> Result<()> {
    in_world(in_namespace("team-a"), async |world| {
        world.vault.root().write("sys/namespaces/team-a", &json!({})).await?;
        let shell = world.shell()?.with("BAO_NAMESPACE", "team-a").with("VAULT_NAMESPACE", "team-a");
        for heading in ["The login, once a cluster", "A workload", "Secrets to try it with", "Certificates"] {
            world.run(&shell, heading)?;
        }
        // What is of the same name elsewhere is not what is read.
        world.vault.root().write("kv/data/payments", &json!({"data": {"password": "of the root"}})).await?;
        let team = |path: &str| format!("team-a/{path}");
        let root = world.vault.root();
        let policy = root.read(&team("sys/policies/acl/payments-api")).await?;
        let text = policy["data"]["policy"].as_str().context("a policy")?;
        let more = "path \"pki/issue/web\" { capabilities = [\"update\"] }";
        let policy = json!({"policy": format!("{text}\n{more}")});
        root.write(&team("sys/policies/acl/payments-api"), &policy).await?;
        let mut role = root.read(&team("pki/roles/web")).await?["data"].clone();
        role["generate_lease"] = json!(true);
        root.write(&team("pki/roles/web"), &role).await?;

        let asked =
            one(PASSWORD).secret("b", "vault:pki/issue/web#certificate?common_name=pay.internal&ttl=1h");
        let mut volume = world.node.published(&pod("api-1"), asked).await?;
        ensure!(read_file(&volume.target(), "a")? == "first-password", "the namespace's own");
        ensure!(read_file(&volume.target(), "b")?.starts_with("-----BEGIN CERTIFICATE"), "a certificate");
        let leases = async || world.vault.root().list("team-a/sys/leases/lookup/pki/issue/web").await;
        ensure!(leases().await?.len() == 1, "its lease is in the namespace");
        explained(world)?;
        volume.unpublish(SOON).await?;
        let gone = async || leases().await.is_ok_and(|left| left.is_empty());
        eventually(SOON, "the lease goes with the pod", gone).await
    })
    .await
}

/// `explain` names the namespace of the login and of each stanza.
fn explained(world: &World) -> Result<()> {
    let manifest = world.vault.directory().join("pod.yaml");
    let pod = json!({
        "kind": "Pod",
        "metadata": {"name": "api-1", "namespace": "payments", "annotations": {
            "countersign.dev/inject": "true", "secret.countersign.dev/a": PASSWORD,
        }},
        "spec": {"serviceAccountName": "api"},
    });
    std::fs::write(&manifest, pod.to_string())?;
    let output = std::process::Command::new(countersign_tests::processes::Binaries::find()?.agent)
        .args(["explain", "--trust-domain", countersign_tests::node::TRUST_DOMAIN, "--config"])
        .arg(&world.node.layout.config)
        .arg(&manifest)
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && said.contains("in namespace team-a"), "{said}");
    ensure!(said.contains("# in namespace team-a"), "{said}");
    Ok(())
}

/// Whether it is met by a login or by a read that brings its login along.
async fn a_namespace_that_is_not_there() -> Result<()> {
    for inline in ["auto", "never"] {
        let mut plan = in_namespace("nobody");
        plan.store.insert("login".to_owned(), json!({"role": "{ns}_{sa}", "inline": inline}));
        in_world(plan, async |world| {
            let status = refusal(&world.node, PASSWORD).await?;
            let text = status.message();
            ensure!(
                text.contains("has no namespace nobody") && text.contains("correct namespace"),
                "{status:?}"
            );
            ensure!(status.code() != Code::NotFound, "it says nothing of the secret: {status:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
