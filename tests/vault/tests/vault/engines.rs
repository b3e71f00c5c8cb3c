//! Secrets engines, each as its own users know it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, eventually};
use countersign_tests::reader::read_file;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::{Value, json};
use tonic::Code;

use crate::asking::{changed, counts_beyond, one, pod, refusal, says, value};
use crate::refusals::permit;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("engines::a_version_is_pinned", Needs::Root, a_version_is_pinned),
        case("engines::a_secret_that_ends_is_looked_at_then", Needs::Root, a_secret_that_ends),
        case("engines::an_unchanged_secret_is_not_read_again", Needs::Root, an_unchanged_secret),
        case("engines::values_of_every_kind", Needs::Root, values_of_every_kind),
        case("engines::static_credentials_follow_their_rotation", Needs::Root, static_credentials),
        case("engines::the_key_of_a_certificate_stays_on_the_node", Needs::Root, the_key_stays_on_the_node),
        case("engines::a_certificate_is_replaced_in_time", Needs::Root, a_certificate_is_replaced_in_time),
        case("engines::a_wrapping_token_is_handed_over", Needs::Root, a_wrapping_token_is_handed_over),
        case("engines::a_wrapping_token_is_opened", Needs::Root, a_wrapping_token_is_opened),
        case("engines::approle_and_transit", Needs::Root, approle_and_transit),
    ]
}

async fn a_version_is_pinned() -> Result<()> {
    in_world(Plan::default(), async |world| {
        world.vault.root().write("kv/data/payments", &json!({"data": {"password": "second"}})).await?;
        ensure!(value(&world.node, "vault:kv/data/payments#password").await? == "second", "the newest");
        let pinned = value(&world.node, "vault:kv/data/payments#password?version=1").await?;
        ensure!(pinned == "first-password", "and the first");
        Ok(())
    })
    .await
}

/// `delete_version_after` tells when a secret goes: it is looked at again then, not an hour later.
async fn a_secret_that_ends() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let root = world.vault.root();
        permit(world, &["kv/*"]).await?;
        root.write("kv/metadata/short", &json!({"delete_version_after": "8s"})).await?;
        root.write("kv/data/short", &json!({"data": {"x": "one"}})).await?;
        let mut volume =
            world.node.published(&pod("api-1"), one("vault:kv/data/short#x").refresh("1h")).await?;
        root.write("kv/metadata/short", &json!({"delete_version_after": "1h"})).await?;
        root.write("kv/data/short", &json!({"data": {"x": "two"}})).await?;
        world.node.arrives(&volume, "a", "two").await?;
        volume.unpublish(SOON).await
    })
    .await
}

/// Where the policy allows a look at the metadata, the secret stays in Vault until it changes; that it may not be read any
/// more is noticed all the same.
async fn an_unchanged_secret() -> Result<()> {
    in_world(Plan::default(), async |world| {
        permit(world, &["kv/metadata/*"]).await?;
        let count = |path: &str| -> Result<usize> {
            Ok(world.vault.audit()?.iter().filter(|entry| entry.reads(path)).count())
        };
        let asked = one("vault:kv/data/payments#password").refresh("1s");
        let mut volume = world.node.published(&pod("api-1"), asked).await?;
        let looks = async || count("kv/metadata/payments").is_ok_and(|looks| looks >= 3);
        eventually(SOON, "three looks at the metadata", looks).await?;
        ensure!(count("kv/data/payments")? == 1, "and one read of the secret");
        let root = world.vault.root();
        root.write("kv/data/payments", &json!({"data": {"password": "second"}})).await?;
        world.node.arrives(&volume, "a", "second").await?;
        let refused = world.vault.audit()?.into_iter().filter(|entry| !entry.error.is_empty()).count();
        ensure!(refused == 0, "nothing was refused");
        let only_metadata = "path \"kv/metadata/*\" { capabilities = [\"read\"] }";
        root.write("sys/policies/acl/payments-api", &json!({"policy": only_metadata})).await?;
        counts_beyond(&world.node, "countersign_fetch_total", &["result=\"denied\""], 0.0).await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn values_of_every_kind() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let bytes: Vec<u8> = (0..=255).collect();
        let data = json!({
            "number": 12_345_678_901_u64, "flag": true, "list": [1, "two"], "deep": {"a": {"b": "c"}},
            "text": "line\nline\u{fc}", "binary": STANDARD.encode(&bytes),
        });
        world.vault.root().write("kv/data/payments", &json!({"data": data})).await?;
        for (reference, expected) in [
            ("vault:kv/data/payments#number", "12345678901"),
            ("vault:kv/data/payments#flag", "true"),
            ("vault:kv/data/payments#list", r#"[1,"two"]"#),
            ("vault:kv/data/payments#/deep/a/b", "c"),
            ("vault:kv/data/payments#text", "line\nline\u{fc}"),
        ] {
            let found = value(&world.node, reference).await?;
            ensure!(found == expected, "{reference}: {found:?}");
        }
        let whole: Value = serde_json::from_str(&value(&world.node, "vault:kv/data/payments").await?)?;
        ensure!(whole == data, "the whole secret is its data, not Vault's envelope: {whole}");
        let asked = one("vault:kv/data/payments#binary?encoding=base64");
        let mut volume = world.node.published(&pod("api-1"), asked).await?;
        ensure!(std::fs::read(volume.target().join("a"))? == bytes, "bytes");
        volume.unpublish(SOON).await
    })
    .await
}

async fn static_credentials() -> Result<()> {
    in_world(Plan { database: true, ..Plan::default() }, async |world| {
        permit(world, &["database/*"]).await?;
        let postgres = world.postgres.as_ref().context("PostgreSQL")?;
        postgres.sql("app", "CREATE ROLE static LOGIN PASSWORD 'x'")?;
        let role = json!({"db_name": "app", "username": "static", "rotation_period": "6s"});
        world.vault.root().write("database/static-roles/app-static", &role).await?;
        let asked = one("vault:database/static-creds/app-static#password").refresh("1h");
        let mut volume = world.node.published(&pod("api-1"), asked).await?;
        let mut before = read_file(&volume.target(), "a")?;
        for _ in 0..2 {
            before = changed(&volume, "a", &before, SOON).await?;
            let who = postgres.sql_as("static", &before, "SELECT current_user")?;
            ensure!(who == "static", "the new password opens the database");
        }
        ensure!(postgres.dynamic_users()?.is_empty(), "nobody was made for it");
        volume.unpublish(SOON).await
    })
    .await
}

async fn the_key_stays_on_the_node() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let asked = one("vault:pki/sign/web?common_name=pay.internal&ttl=24h")
            .secret("key", "vault:pki/sign/web#private_key?common_name=pay.internal&ttl=24h&mode=0400");
        let mut volume = world.node.published(&pod("api-1"), asked).await?;
        let whole: Value = serde_json::from_str(&read_file(&volume.target(), "a")?)?;
        let key = read_file(&volume.target(), "key")?;
        ensure!(whole["private_key"] == key.as_str(), "two references to one certificate are of one read");
        let directory = volume.target();
        let certificate = whole["certificate"].as_str().context("a certificate")?;
        ensure!(
            public_of(&directory.join("key"))? == public_in(certificate)?,
            "key and certificate are a pair"
        );
        let audit = world.vault.audit_text()?;
        ensure!(!audit.contains("pki/issue"), "Vault made no key");
        let body = key.lines().nth(1).context("a body")?;
        ensure!(!audit.contains(body), "and was shown none");
        // A name that the role does not allow: Vault's own words reach the pod.
        let status = refusal(&world.node, "vault:pki/sign/web?common_name=pay.example.com").await?;
        says(&status, Code::FailedPrecondition, &["pay.example.com", "not allowed"])?;
        volume.unpublish(SOON).await
    })
    .await
}

/// The public key of a private one, as openssl reads it.
fn public_of(key: &std::path::Path) -> Result<String> {
    let output = std::process::Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(key).output()?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The public key in a certificate.
fn public_in(certificate: &str) -> Result<String> {
    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, certificate.as_bytes())?;
    let output = std::process::Command::new("openssl")
        .args(["x509", "-pubkey", "-noout", "-in"])
        .arg(file.path())
        .output()?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

async fn a_certificate_is_replaced_in_time() -> Result<()> {
    in_world(Plan::default(), async |world| {
        // Vault backdates by 30 s.
        let asked = one("vault:pki/sign/web#certificate?common_name=pay.internal&ttl=15s");
        let mut volume = world.node.published(&pod("api-1"), asked).await?;
        let first = read_file(&volume.target(), "a")?;
        changed(&volume, "a", &first, Duration::from_secs(20)).await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn a_wrapping_token_is_handed_over() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let reference = "vault:kv/data/payments#token?vault.wrap=5m";
        let mut volumes = Vec::new();
        let mut tokens = Vec::new();
        for name in ["api-1", "api-2"] {
            let volume = world.node.published(&pod(name), one(reference)).await?;
            tokens.push(read_file(&volume.target(), "a")?);
            volumes.push(volume);
        }
        ensure!(tokens[0] != tokens[1], "each volume has its own: it can be used once");
        for token in &tokens {
            let opened =
                world.vault.anonymous().with_token(token).write("sys/wrapping/unwrap", &Value::Null).await?;
            ensure!(opened["data"]["data"]["password"] == "first-password", "the pod opens it: {opened}");
        }
        for mut volume in volumes {
            volume.unpublish(SOON).await?;
        }
        Ok(())
    })
    .await
}

/// Somebody put a wrapping token into a secret: it is opened for the pod, if it is from where it should be.
async fn a_wrapping_token_is_opened() -> Result<()> {
    in_world(Plan::default(), async |world| {
        put_wrapped(world, "sys/wrapping/wrap", "given").await?;
        let right = "vault:kv/data/payments#answer?vault.unwrap=token&vault.created-by=sys/wrapping/wrap";
        let mut volume = world.node.published(&pod("api-1"), one(right)).await?;
        ensure!(read_file(&volume.target(), "a")? == "given", "what was wrapped");
        volume.unpublish(SOON).await?;
        // It was used: somebody else might have been first, and that is what has to be said.
        let status = refusal(&world.node, right).await?;
        says(&status, Code::FailedPrecondition, &["used", "token"])?;
        let token = put_wrapped(world, "sys/wrapping/wrap", "again").await?;
        let wrong = "vault:kv/data/payments#answer?vault.unwrap=token&vault.created-by=auth/approle/login";
        let status = refusal(&world.node, wrong).await?;
        says(&status, Code::FailedPrecondition, &["auth/approle/login", "sys/wrapping/wrap"])?;
        ensure!(!status.message().contains(&token), "the token is not shown");
        let opened =
            world.vault.anonymous().with_token(&token).write("sys/wrapping/unwrap", &Value::Null).await?;
        ensure!(opened["data"]["answer"] == "again", "it was refused unopened");
        Ok(())
    })
    .await
}

/// Wraps a value, and writes the token into the secret `kv/payments`.
async fn put_wrapped(world: &World, path: &str, value: &str) -> Result<String> {
    let shell = world.shell()?.with("VAULT_FORMAT", "json");
    let wrapped =
        shell.run(world.vault.directory(), &format!("vault write -wrap-ttl=5m {path} answer={value}"))?;
    let wrapped: Value = serde_json::from_str(&wrapped)?;
    let token = wrapped["wrap_info"]["token"].as_str().context("a wrapping token")?.to_owned();
    world.vault.root().write("kv/data/payments", &json!({"data": {"token": token}})).await?;
    Ok(token)
}

async fn approle_and_transit() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let root = world.vault.root();
        permit(world, &["auth/approle/*", "transit/*"]).await?;
        root.write("sys/auth/approle", &json!({"type": "approle"})).await?;
        root.write("auth/approle/role/batch", &json!({"secret_id_ttl": "10m"})).await?;
        let id = value(&world.node, "vault:auth/approle/role/batch/role-id#role_id").await?;
        let secret =
            value(&world.node, "vault:auth/approle/role/batch/secret-id#secret_id?vault.method=post").await?;
        let login = json!({"role_id": id, "secret_id": secret});
        world.vault.anonymous().write("auth/approle/login", &login).await.context("they log in")?;

        root.write("sys/mounts/transit", &json!({"type": "transit"})).await?;
        root.write("transit/keys/k", &json!({})).await?;
        let sealed = root.write("transit/encrypt/k", &json!({"plaintext": STANDARD.encode("plain")})).await?;
        let sealed = sealed["data"]["ciphertext"].as_str().context("a ciphertext")?;
        let reference = format!("vault:transit/decrypt/k#plaintext?ciphertext={sealed}&encoding=base64");
        ensure!(value(&world.node, &reference).await? == "plain", "decrypted for the pod");
        Ok(())
    })
    .await
}
