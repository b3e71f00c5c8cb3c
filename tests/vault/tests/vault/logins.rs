//! Logging in, and why it fails.

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, eventually};
use countersign_tests::pods::Pod;
use countersign_tests::reader::read_file;
use countersign_vault_tests::audit::Entry;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::{Map, Value, json};
use tonic::Code;

use crate::asking::{counted, one, pod, refusal, refusal_of, says, value};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("logins::another_account_has_another_role", Needs::Root, another_account_has_another_role),
        case("logins::what_vault_refuses_is_explained", Needs::Root, what_vault_refuses_is_explained),
        case("logins::keys_that_vault_does_not_know", Needs::Root, keys_that_vault_does_not_know),
        case("logins::a_wrong_audience", Needs::Root, a_wrong_audience),
        case("logins::a_certificate_without_a_common_name", Needs::Root, a_certificate_without_a_common_name),
        case("logins::a_certificate_logs_in_where_no_name_is_needed", Needs::Root, a_certificate_logs_in),
        case("logins::one_login_for_many_reads", Needs::Root, one_login_for_many_reads),
        case("logins::the_operators_lock_comes_first", Needs::Root, the_operators_lock_comes_first),
    ]
}

const PASSWORD: &str = "vault:kv/data/payments#password";

fn with_login(login: Value) -> Plan {
    Plan { store: Map::from_iter([("login".to_owned(), login)]), ..Plan::default() }
}

/// The role is the identity's, not the pod's to choose: another account of the namespace gets nothing.
async fn another_account_has_another_role() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let other = Pod::new("payments", "reports-1", "reports");
        let status = refusal_of(&world.node, &other, one(PASSWORD)).await?;
        says(&status, Code::PermissionDenied, &["payments_reports", "auth/jwt/role"])?;
        // Even under the name of a role that is there, the subject is another.
        let role = world.vault.root().read("auth/jwt/role/payments_api").await?;
        world.vault.root().write("auth/jwt/role/payments_reports", &role["data"]).await?;
        // A login that failed is not tried again at once.
        let refused = async || {
            let status = refusal_of(&world.node, &other, one(PASSWORD)).await;
            status.and_then(|status| says(&status, Code::PermissionDenied, &["bound_subject"])).is_ok()
        };
        eventually(SOON, "the role is there, and refuses the subject", refused).await
    })
    .await
}

async fn what_vault_refuses_is_explained() -> Result<()> {
    in_world(with_login(json!({"role": "nobody-made-this"})), async |world| {
        let status = refusal(&world.node, PASSWORD).await?;
        says(&status, Code::PermissionDenied, &["nobody-made-this", "login.role", "auth/jwt"])?;
        // It is there now: the pod that waits starts.
        let role = world.vault.root().read("auth/jwt/role/payments_api").await?;
        world.vault.root().write("auth/jwt/role/nobody-made-this", &role["data"]).await?;
        ensure!(value(&world.node, PASSWORD).await? == "first-password", "it starts by itself");
        Ok(())
    })
    .await
}

/// The keys were copied once, and have been rotated since.
async fn keys_that_vault_does_not_know() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let stale = std::process::Command::new("openssl")
            .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout"])
            .output()?;
        let mut public = std::process::Command::new("openssl")
            .args(["ec", "-pubout"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        std::io::Write::write_all(&mut public.stdin.take().context("stdin")?, &stale.stdout)?;
        let public = String::from_utf8(public.wait_with_output()?.stdout)?;
        let stale = json!({"jwks_url": "", "jwks_ca_pem": "", "jwt_validation_pubkeys": [public]});
        world.vault.root().write("auth/jwt/config", &stale).await?;
        let status = refusal(&world.node, PASSWORD).await?;
        says(&status, Code::PermissionDenied, &["signature", "jwks_url"])
    })
    .await
}

async fn a_wrong_audience() -> Result<()> {
    in_world(with_login(json!({"role": "{ns}_{sa}", "audience": "wault"})), async |world| {
        let status = refusal(&world.node, PASSWORD).await?;
        says(&status, Code::PermissionDenied, &["wault", "audience", "bound_audiences"])
    })
    .await
}

/// SVIDs of ours have no common name, and Vault's `auth/cert` takes nothing else for an alias.
async fn a_certificate_without_a_common_name() -> Result<()> {
    in_world(with_login(json!({"method": "cert", "role": "{ns}_{sa}"})), async |world| {
        std::fs::copy(&world.node.layout.bundle, world.vault.directory().join("roots.pem"))?;
        world.run(&world.shell()?, "By certificate")?;
        let status = refusal(&world.node, PASSWORD).await?;
        says(&status, Code::PermissionDenied, &["common name", "jwt"])
    })
    .await
}

/// Lets the page's workload log in with certificates of the trust domain.
async fn trust_certificates(world: &World) -> Result<()> {
    let bundle = std::fs::read_to_string(&world.node.layout.bundle)?;
    let role = json!({
        "certificate": bundle, "token_policies": ["payments-api"], "token_ttl": "9s",
        "allowed_uri_sans": ["spiffe://example.org/ns/payments/sa/api"],
    });
    world.vault.root().write("auth/cert/certs/payments_api", &role).await.map(drop)
}

/// The remedy for who runs Vault and cannot change the certificates: a mount of this cluster alone, without entities.
async fn a_certificate_logs_in() -> Result<()> {
    let environment = vec![("VAULT_DISABLE_LOCAL_AUTH_MOUNT_ENTITIES", "true")];
    let plan = Plan { environment, ..with_login(json!({"method": "cert", "role": "{ns}_{sa}"})) };
    in_world(plan, async |world| {
        world.vault.root().write("sys/auth/cert", &json!({"type": "cert", "local": true})).await?;
        trust_certificates(world).await?;
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD).refresh("1s")).await?;
        ensure!(read_file(&volume.target(), "a")? == "first-password", "the password");
        let data = json!({"data": {"password": "second"}});
        world.vault.root().write("kv/data/payments", &data).await?;
        world.node.arrives(&volume, "a", "second").await?;
        let again = async || {
            let by_us = |entry: &Entry| entry.is_login() && entry.error.is_empty();
            world.vault.audit().is_ok_and(|audit| audit.iter().filter(|entry| by_us(entry)).count() >= 3)
        };
        eventually(SOON, "new logins in place of tokens that end", again).await?;
        let other = Pod::new("payments", "reports-1", "reports");
        let status = refusal_of(&world.node, &other, one(PASSWORD)).await?;
        ensure!(status.code() == Code::PermissionDenied, "another account: {status:?}");
        // The certificate that logged in is not the one that would renew.
        let audit = world.vault.audit()?;
        let renewals = audit.iter().filter(|entry| entry.asks_for("auth/token/renew-self")).count();
        ensure!(renewals == 0, "{renewals} renewals of a token that a certificate logged in for");
        volume.unpublish(SOON).await
    })
    .await
}

/// Several references, one identity, one token.
async fn one_login_for_many_reads() -> Result<()> {
    in_world(Plan::default(), async |world| {
        world.vault.root().write("kv/data/payments", &json!({"data": {"password": "a", "b": "b"}})).await?;
        let asked =
            one(PASSWORD).secret("b", "vault:kv/data/payments#b").secret("c", "vault:kv/data/payments");
        let mut first = world.node.published(&pod("api-1"), asked.clone()).await?;
        let mut second = world.node.published(&pod("api-2"), asked).await?;
        let audit = world.vault.audit()?;
        let logins = audit.iter().filter(|entry| entry.is_login()).count();
        let reads = audit.iter().filter(|entry| entry.reads("kv/data/payments")).count();
        ensure!((logins, reads) == (1, 1), "{logins} logins and {reads} reads");
        let svids = counted(&world.node, "countersign_identity_total", &["result=\"ok\""]).await?;
        ensure!((svids - 3.0).abs() < 0.5, "{svids} SVIDs: one for each pod, and one to log in with");
        first.unpublish(SOON).await?;
        second.unpublish(SOON).await
    })
    .await
}

/// `allow` refuses before Vault is asked.
async fn the_operators_lock_comes_first() -> Result<()> {
    let allow = json!([{"id": "spiffe://example.org/ns/*/sa/*", "paths": ["kv/data/{ns}/**"]}]);
    let plan = Plan { store: Map::from_iter([("allow".to_owned(), allow)]), ..Plan::default() };
    in_world(plan, async |world| {
        let before = world.vault.audit()?.len();
        let status = refusal(&world.node, PASSWORD).await?;
        says(&status, Code::PermissionDenied, &["kv/data/payments", "allow"])?;
        ensure!(world.vault.audit()?.len() == before, "Vault was not asked");
        Ok(())
    })
    .await
}
