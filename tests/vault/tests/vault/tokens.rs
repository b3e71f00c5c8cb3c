//! Tokens: kept while somebody needs them, renewed, replaced when Vault takes them away, and given back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, eventually};
use countersign_tests::reader::read_file;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::{Value, json};

use crate::asking::{counted, one, pod, refusal};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("tokens::revoked_under_us", Needs::Root, revoked_under_us),
        case("tokens::renewed_or_made_anew", Needs::Root, renewed_or_made_anew),
        case("tokens::given_back_with_the_last_user", Needs::Root, given_back_with_the_last_user),
        case("tokens::a_denial_is_no_reason_to_log_in_again_and_again", Needs::Root, a_denial),
    ]
}

const PASSWORD: &str = "vault:kv/data/payments#password";

fn logins(world: &World) -> Result<usize> {
    Ok(world.vault.audit()?.iter().filter(|entry| entry.is_login()).count())
}

/// Accessors of all tokens that came from the jwt mount.
async fn accessors(world: &World) -> Result<Vec<String>> {
    let root = world.vault.root();
    let mut found = Vec::new();
    for accessor in root.list("auth/token/accessors").await? {
        let looked_up = root.write("auth/token/lookup-accessor", &json!({"accessor": accessor})).await;
        // One that has ended since the list was made.
        let Ok(token) = looked_up else { continue };
        if token["data"]["path"] == "auth/jwt/login" {
            found.push(accessor);
        }
    }
    Ok(found)
}

async fn revoked_under_us() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD).refresh("1s")).await?;
        for accessor in accessors(world).await? {
            world.vault.root().write("auth/token/revoke-accessor", &json!({"accessor": accessor})).await?;
        }
        world.vault.root().write("kv/data/payments", &json!({"data": {"password": "second"}})).await?;
        // Though the token is in its first minute: Vault says that it does not know it.
        let arrived = async || read_file(&volume.target(), "a").is_ok_and(|now| now == "second");
        eventually(SOON, "the new value", arrived).await?;
        ensure!(logins(world)? == 2, "replaced once: {} logins", logins(world)?);
        volume.unpublish(SOON).await
    })
    .await
}

async fn renewed_or_made_anew() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let root = world.vault.root();
        let mut role = root.read("auth/jwt/role/payments_api").await?["data"].clone();
        let role = role.as_object_mut().context("a role")?;
        role.insert("token_period".to_owned(), json!(0));
        role.insert("token_ttl".to_owned(), json!("5s"));
        role.insert("token_max_ttl".to_owned(), json!("10s"));
        root.write("auth/jwt/role/payments_api", &Value::Object(role.clone())).await?;
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD).refresh("1s")).await?;
        // Over the end of two tokens, nothing is ever refused.
        let seen = async || logins(world).is_ok_and(|count| count >= 3);
        eventually(SOON, "tokens follow each other", seen).await?;
        let refused: Vec<_> =
            world.vault.audit()?.into_iter().filter(|entry| !entry.error.is_empty()).collect();
        ensure!(refused.is_empty(), "{refused:?}");
        volume.unpublish(SOON).await
    })
    .await
}

async fn given_back_with_the_last_user() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let mut one_of_two = world.node.published(&pod("api-1"), one(PASSWORD)).await?;
        let mut other = world.node.published(&pod("api-2"), one(PASSWORD)).await?;
        ensure!(accessors(world).await?.len() == 1, "one token for both");
        let gauge = async || {
            let tokens = counted(&world.node, "countersign_vault_tokens", &["store=\"vault\""]).await;
            tokens.is_ok_and(|tokens| (0.5..1.5).contains(&tokens))
        };
        eventually(Duration::from_secs(60), "it is counted", gauge).await?;
        one_of_two.unpublish(SOON).await?;
        ensure!(accessors(world).await?.len() == 1, "it is still in use");
        other.unpublish(SOON).await?;
        // It is kept for a minute: a pod that is replaced by another needs no new login.
        let none = async || accessors(world).await.is_ok_and(|left| left.is_empty());
        eventually(Duration::from_secs(120), "the token is revoked", none).await
    })
    .await
}

/// 403 may mean that the token is gone: one login tells. After that it is a denial.
async fn a_denial() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD)).await?;
        let before = logins(world)?;
        for _ in 0..3 {
            refusal(&world.node, "vault:kv/data/forbidden#x").await?;
        }
        let more = logins(world)? - before;
        ensure!(more <= 3, "{more} logins for three denials");
        volume.unpublish(SOON).await
    })
    .await
}
