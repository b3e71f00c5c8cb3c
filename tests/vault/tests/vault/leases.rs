//! Credentials with a lease: renewed while the pod lives, replaced before they end, revoked when it goes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::kubelet::PodVolume;
use countersign_tests::node::{SOON, eventually};
use countersign_tests::pods::Volume;
use countersign_tests::reader::{read, read_file};
use countersign_vault_tests::postgres::Postgres;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::{Map, Value, json};

use crate::asking::{changed, counted, counts_beyond, pod};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("leases::each_volume_has_its_own", Needs::Root, each_volume_has_its_own),
        case("leases::renewed_and_kept", Needs::Root, renewed_and_kept),
        case("leases::replaced_before_the_longest_life_ends", Needs::Root, replaced_before_it_ends),
        case("leases::revoked_under_us", Needs::Root, revoked_under_us),
        case("leases::the_pod_goes_while_vault_is_down", Needs::Root, the_pod_goes_while_vault_is_down),
        case("leases::what_cannot_be_revoked_is_given_up_loudly", Needs::Root, given_up_loudly),
        case("leases::an_agent_that_restarts", Needs::Root, an_agent_that_restarts),
        case("leases::vault_is_put_back_to_a_snapshot", Needs::Root, vault_is_put_back_to_a_snapshot),
        case("leases::the_database_is_down", Needs::Root, the_database_is_down),
    ]
}

/// User and password of one read.
fn credentials() -> Volume {
    Volume::new()
        .secret("user", "vault:database/creds/app#username")
        .template("pair", "{{ secret(\"vault:database/creds/app\").username }} {{ secret(\"vault:database/creds/app\").password }}")
}

/// A world with a database whose credentials live for so long, and an overlap of two seconds.
fn plan() -> Plan {
    let store = Map::from_iter([("leaseOverlap".to_owned(), json!("2s"))]);
    Plan { database: true, store, ..Plan::default() }
}

/// From now on credentials live for so long at first, and for so long at most.
pub(crate) async fn lives(world: &World, ttl: &str, longest: &str) -> Result<()> {
    let role = json!({"default_ttl": ttl, "max_ttl": longest});
    world.vault.root().write("database/roles/app", &merged(world, role).await?).await.map(drop)
}

/// The role as it is, with changes: a write replaces all of it.
async fn merged(world: &World, changes: Value) -> Result<Value> {
    let mut role = world.vault.root().read("database/roles/app").await?["data"].clone();
    let role_map = role.as_object_mut().context("a role")?;
    for (key, value) in changes.as_object().context("changes")? {
        role_map.insert(key.clone(), value.clone());
    }
    Ok(role)
}

fn postgres(world: &World) -> Result<&Postgres> {
    world.postgres.as_ref().context("PostgreSQL")
}

/// The pair in the files, which is of one read, and opens the database.
fn opens(world: &World, volume: &PodVolume) -> Result<String> {
    let files = read(&volume.target())?;
    let pair = String::from_utf8(files["pair"].clone())?;
    let (user, password) = pair.split_once(' ').context("a pair")?;
    ensure!(files["user"] == user.as_bytes(), "two files of two reads");
    postgres(world)?.sql_as(user, password, "SELECT 1")?;
    Ok(user.to_owned())
}

async fn leases(world: &World) -> Result<Vec<String>> {
    world.vault.root().list("sys/leases/lookup/database/creds/app").await
}

async fn each_volume_has_its_own() -> Result<()> {
    in_world(plan(), async |world| {
        let mut one = world.node.published(&pod("api-1"), credentials()).await?;
        let mut two = world.node.published(&pod("api-2"), credentials()).await?;
        let (first, second) = (opens(world, &one)?, opens(world, &two)?);
        ensure!(first != second, "each volume has a user of its own");
        ensure!(leases(world).await?.len() == 2, "two leases for two volumes with two references each");
        ensure!(
            (1.5..2.5).contains(&counted(&world.node, "countersign_leases", &["store=\"vault\""]).await?),
            "and so it is counted"
        );
        one.unpublish(SOON).await?;
        let left = async || {
            postgres(world).is_ok_and(|it| it.dynamic_users().is_ok_and(|users| users == [second.clone()]))
        };
        eventually(SOON, "the first goes with its pod, alone", left).await?;
        ensure!(opens(world, &two)? == second, "the other stays as it is");
        two.unpublish(SOON).await?;
        gone(world).await
    })
    .await
}

/// Sees that no lease has left a user behind.
pub(crate) async fn gone(world: &World) -> Result<()> {
    let gone =
        async || postgres(world).is_ok_and(|it| it.dynamic_users().is_ok_and(|users| users.is_empty()));
    eventually(SOON, "no user is left in the database", gone).await
}

fn renewals(world: &World) -> Result<usize> {
    Ok(world.vault.audit()?.iter().filter(|entry| entry.asks_for("sys/leases/renew")).count())
}

async fn renewed_and_kept() -> Result<()> {
    in_world(plan(), async |world| {
        lives(world, "6s", "1h").await?;
        let mut volume = world.node.published(&pod("api-1"), credentials()).await?;
        let user = opens(world, &volume)?;
        let renewed = async || renewals(world).is_ok_and(|count| count >= 3);
        eventually(SOON, "three renewals", renewed).await?;
        ensure!(opens(world, &volume)? == user, "the same user all the time");
        ensure!(postgres(world)?.dynamic_users()?.len() == 1, "and no other");
        volume.unpublish(SOON).await?;
        gone(world).await
    })
    .await
}

/// Near `max_ttl` renewals give less and less: a new credential comes while the old one is still good.
async fn replaced_before_it_ends() -> Result<()> {
    in_world(plan(), async |world| {
        lives(world, "8s", "12s").await?;
        let mut volume = world.node.published(&pod("api-1"), credentials()).await?;
        let first = read_file(&volume.target(), "pair")?;
        let (user, password) = first.split_once(' ').context("a pair")?;
        let second = changed(&volume, "pair", &first, SOON).await?;
        postgres(world)?
            .sql_as(user, password, "SELECT 1")
            .context("the old one is good when the new one is there")?;
        opens(world, &volume)?;
        let revoked = async || {
            postgres(world)
                .is_ok_and(|it| it.dynamic_users().is_ok_and(|users| !users.contains(&user.to_owned())))
        };
        eventually(SOON, "the old one goes", revoked).await?;
        ensure!(second != first, "another");
        opens(world, &volume)?;
        volume.unpublish(SOON).await?;
        gone(world).await
    })
    .await
}

async fn revoked_under_us() -> Result<()> {
    in_world(plan(), async |world| {
        lives(world, "9s", "1h").await?;
        let mut volume = world.node.published(&pod("api-1"), credentials()).await?;
        let first = read_file(&volume.target(), "pair")?;
        world.vault.root().write("sys/leases/revoke-prefix/database/creds/app", &Value::Null).await?;
        changed(&volume, "pair", &first, SOON).await?;
        opens(world, &volume)?;
        volume.unpublish(SOON).await?;
        gone(world).await
    })
    .await
}

/// Revoking goes on when the volume is gone.
async fn the_pod_goes_while_vault_is_down() -> Result<()> {
    in_world(plan(), async |world| {
        let mut volume = world.node.published(&pod("api-1"), credentials()).await?;
        world.vault.kill()?;
        volume.unpublish(SOON).await.context("the pod goes, Vault or not")?;
        ensure!(postgres(world)?.dynamic_users()?.len() == 1, "nobody could revoke it");
        world.vault.resume().await?;
        gone(world).await?;
        counts_beyond(&world.node, "countersign_lease_revocations_total", &["store=\"vault\""], 0.0).await
    })
    .await
}

/// Vault stays away for longer than the login lives: what is left is counted, and named by what is no secret.
async fn given_up_loudly() -> Result<()> {
    in_world(plan(), async |world| {
        let mut role = world.vault.root().read("auth/jwt/role/payments_api").await?["data"].clone();
        role["token_period"] = json!("12s");
        world.vault.root().write("auth/jwt/role/payments_api", &role).await?;
        let mut volume = world.node.published(&pod("api-1"), credentials()).await?;
        let pair = read_file(&volume.target(), "pair")?;
        let root = world.vault.root();
        let [lease] = leases(world).await?.try_into().ok().context("one lease")?;
        let mut accessors = Vec::new();
        for accessor in root.list("auth/token/accessors").await? {
            let token = root.write("auth/token/lookup-accessor", &json!({"accessor": accessor})).await?;
            if token["data"]["path"] == "auth/jwt/login" {
                accessors.push(accessor);
            }
        }
        world.vault.kill()?;
        volume.unpublish(SOON).await.context("the pod goes")?;
        let labels = ["store=\"vault\"", "result=\"given_up\""];
        let given_up = async || {
            let count = counted(&world.node, "countersign_lease_revocations_total", &labels).await;
            count.is_ok_and(|count| count >= 1.0)
        };
        eventually(Duration::from_secs(60), "it is given up", given_up).await?;
        let log = std::fs::read_to_string(world.node.layout.log("agent"))?;
        let told = log.lines().find(|line| line.contains("given up") && line.contains(&lease));
        let told = told.with_context(|| format!("no line names the lease {lease}"))?;
        ensure!(told.contains("WARN"), "it is a warning: {told}");
        ensure!(
            accessors.iter().any(|accessor| told.contains(accessor)),
            "the login's accessor is in it: {told}"
        );
        let (_, password) = pair.split_once(' ').context("a pair")?;
        ensure!(!log.contains("hvs.") && !log.contains(password), "neither token nor password is");
        world.vault.resume().await?;
        gone(world).await.context("it ended by its TTL")
    })
    .await
}

/// Files stay; with the republish come new credentials, and the old ones end by their TTL.
async fn an_agent_that_restarts() -> Result<()> {
    in_world(plan(), async |world| {
        lives(world, "20s", "1h").await?;
        let mut volume = world.node.published(&pod("api-1"), credentials()).await?;
        let first = read_file(&volume.target(), "pair")?;
        world.node.kill_agent()?;
        ensure!(read_file(&volume.target(), "pair")? == first, "files stay without an agent");
        world.node.start_agent().await?;
        let target = volume.target();
        let changes = async || read_file(&target, "pair").is_ok_and(|now| now != first);
        let arrival = eventually(SOON, "new credentials", changes);
        tokio::select! {
            arrived = arrival => arrived?,
            () = volume.republish_every(Duration::from_millis(100)..Duration::from_millis(200)) => {}
        }
        let user = opens(world, &volume)?;
        let alone = async || {
            postgres(world).is_ok_and(|it| it.dynamic_users().is_ok_and(|users| users == [user.clone()]))
        };
        eventually(Duration::from_secs(60), "the old ones end by their TTL", alone).await?;
        volume.unpublish(SOON).await?;
        gone(world).await
    })
    .await
}

/// Vault knows neither token nor lease any longer.
async fn vault_is_put_back_to_a_snapshot() -> Result<()> {
    in_world(plan(), async |world| {
        lives(world, "9s", "1h").await?;
        let snapshot = world.vault.snapshot().await?;
        let mut volume = world.node.published(&pod("api-1"), credentials()).await?;
        let first = read_file(&volume.target(), "pair")?;
        world.vault.restore(snapshot).await?;
        changed(&volume, "pair", &first, Duration::from_secs(60)).await?;
        opens(world, &volume)?;
        volume.unpublish(SOON).await?;
        let none = async || leases(world).await.is_ok_and(|left| left.is_empty());
        eventually(SOON, "no lease is left that Vault knows of", none).await
    })
    .await
}

/// What is behind Vault fails: the message is Vault's, the pod waits.
async fn the_database_is_down() -> Result<()> {
    in_world(plan(), async |world| {
        let postgres = world.postgres.as_mut().context("PostgreSQL")?;
        postgres.stop().await?;
        let mut volume = world.node.volume(&pod("api-1"), credentials());
        let status = volume.publish_once().await.err().context("there is no database")?;
        ensure!(status.message().contains("vault"), "{status:?}");
        world.postgres.as_mut().context("PostgreSQL")?.resume().await?;
        volume.publish(SOON).await?;
        opens(world, &volume)?;
        volume.unpublish(SOON).await?;
        gone(world).await
    })
    .await
}
