//! More than one server: a standby answers, the active one steps down, goes or is killed, and pods notice nothing.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case_within};
use countersign_tests::kubelet::PodVolume;
use countersign_tests::node::{SOON, eventually, free_address};
use countersign_tests::reader::read_file;
use countersign_vault_tests::server::Vault;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::{Map, json};

use crate::asking::{counted, one, pod};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case_within(LIMIT, "standby::all_goes_through_one", Needs::Root, all_goes_through_one),
        case_within(LIMIT, "standby::the_active_one_steps_down", Needs::Root, the_active_one_steps_down),
        case_within(LIMIT, "standby::the_active_one_is_killed", Needs::Root, the_active_one_is_killed),
        case_within(LIMIT, "standby::one_that_sends_away", Needs::Root, one_that_sends_away),
    ]
}

const PASSWORD: &str = "vault:kv/data/payments#password";
/// Several servers take their time to start.
const LIMIT: Duration = Duration::from_secs(300);
const VOLUMES: usize = 10;
/// An election, or a lock that runs out, on a busy machine.
const TAKEOVER: Duration = Duration::from_secs(60);

/// Servers that stand by when it begins, in front of the first among the store's addresses.
async fn in_cluster(
    standbys: usize,
    plan: Plan,
    body: impl AsyncFnOnce(&mut World, &mut Vec<Vault>) -> Result<()>,
) -> Result<()> {
    let addresses = (0..standbys).map(|_| free_address()).collect::<Result<Vec<_>>>()?;
    let store = Map::from_iter([("leaseOverlap".to_owned(), json!("2s"))]);
    let more_addresses = addresses.iter().map(|address| format!("https://{address}")).collect();
    in_world(Plan { database: true, more_addresses, store, ..plan }, async |world| {
        let mut others = Vec::new();
        for address in addresses {
            others.push(world.vault.join(address).await?);
        }
        let outcome = body(world, &mut others).await;
        outcome.with_context(|| others.iter().map(Vault::said).collect::<String>())
    })
    .await
}

/// A pod for each volume, a secret that is looked at each second, and in the first a database user.
async fn published(world: &World) -> Result<Vec<PodVolume>> {
    let mut volumes = Vec::new();
    for number in 0..VOLUMES {
        let mut asked = one(PASSWORD).refresh("1s");
        if number == 0 {
            asked = asked.secret("user", "vault:database/creds/app#username");
        }
        volumes.push(world.node.published(&pod(&format!("api-{number}")), asked).await?);
    }
    Ok(volumes)
}

/// Which generation each volume shows: another one means that files were written.
fn generations(volumes: &[PodVolume]) -> Result<Vec<PathBuf>> {
    let shown = |volume: &PodVolume| std::fs::read_link(volume.target().join("..data"));
    volumes.iter().map(shown).collect::<Result<_, _>>().context("a link")
}

async fn fetched(world: &World) -> Result<f64> {
    counted(&world.node, "countersign_fetch_total", &["store=\"vault\"", "result=\"ok\""]).await
}

/// Waits until secrets are looked at again, and that often.
async fn looked_at(world: &World, times: f64) -> Result<()> {
    let before = fetched(world).await?;
    let more = async || fetched(world).await.is_ok_and(|now| now >= before + times);
    eventually(TAKEOVER, "secrets are looked at", more).await
}

/// The one of them that is active, when one is.
async fn active<'a>(servers: &[&'a Vault]) -> Result<&'a Vault> {
    let found = async || {
        for server in servers {
            if server.is_active().await {
                return true;
            }
        }
        false
    };
    eventually(TAKEOVER, "another one is active", found).await?;
    for server in servers {
        if server.is_active().await {
            return Ok(server);
        }
    }
    anyhow::bail!("none is active any longer")
}

fn lines(world: &World) -> usize {
    std::fs::read_to_string(world.node.layout.log("agent")).unwrap_or_default().lines().count()
}

async fn follow(world: &World, volumes: &[PodVolume], server: &Vault, value: &str) -> Result<()> {
    server.root().write("kv/data/payments", &json!({"data": {"password": value}})).await?;
    for volume in volumes {
        world.node.arrives(volume, "a", value).await?;
    }
    Ok(())
}

async fn gone(world: &World, volumes: Vec<PodVolume>) -> Result<()> {
    for mut volume in volumes {
        volume.unpublish(SOON).await?;
    }
    let postgres = world.postgres.as_ref().context("PostgreSQL")?;
    let none = async || postgres.dynamic_users().is_ok_and(|users| users.is_empty());
    eventually(TAKEOVER, "the user goes with its pod", none).await
}

/// The store knows a standby alone: logins, reads, leases and what is given back are forwarded.
async fn all_goes_through_one() -> Result<()> {
    let address = free_address()?;
    let store = Map::from_iter([("addresses".to_owned(), json!([format!("https://{address}")]))]);
    in_world(Plan { database: true, store, ..Plan::default() }, async |world| {
        let standby = world.vault.join(address).await?;
        let volumes = published(world).await?;
        follow(world, &volumes, &world.vault, "second").await?;
        ensure!(!standby.is_active().await, "it stands by all the time");
        gone(world, volumes).await
    })
    .await
}

/// Sees that an active server that goes is not noticed in any file, and made nobody log in or speak up at length.
async fn unnoticed(
    world: &mut World,
    others: &mut [Vault],
    goes: impl AsyncFnOnce(&mut World) -> Result<()>,
) -> Result<()> {
    let volumes = published(world).await?;
    let user = read_file(&volumes[0].target(), "user")?;
    looked_at(world, 3.0).await?;
    let (generations_before, lines_before) = (generations(&volumes)?, lines(world));
    let audited = world.vault.audited()?;
    goes(world).await?;
    let next = active(&others.iter().collect::<Vec<_>>()).await?;
    looked_at(world, 5.0).await?;
    ensure!(generations(&volumes)? == generations_before, "no file was written");
    ensure!(read_file(&volumes[0].target(), "user")? == user, "the same user");
    let since = world.vault.audit_since(audited)?;
    let logins = since.iter().filter(|entry| entry.is_login()).count();
    ensure!(logins == 0, "{logins} logins: the tokens are as good as before");
    let said = lines(world) - lines_before;
    ensure!(said <= 3 * VOLUMES + 10, "{said} lines for {VOLUMES} volumes");
    follow(world, &volumes, next, "second").await?;
    gone(world, volumes).await
}

async fn the_active_one_steps_down() -> Result<()> {
    in_cluster(2, Plan::default(), async |world, others| {
        unnoticed(world, others, async |world| world.vault.step_down().await).await
    })
    .await
}

/// Two of three are enough to elect another.
async fn the_active_one_is_killed() -> Result<()> {
    in_cluster(2, Plan::default(), async |world, others| {
        unnoticed(world, others, async |world| world.vault.kill()).await
    })
    .await
}

/// Without forwarding a standby answers with a redirect, which is not followed: the active one is found among the
/// addresses, whichever it is.
async fn one_that_sends_away() -> Result<()> {
    in_cluster(1, Plan { shared_storage: true, ..Plan::default() }, async |world, others| {
        unnoticed(world, others, async |world| world.vault.step_down().await).await?;
        // And back again, to the one that has been sending away since.
        let volume = world.node.published(&pod("again"), one(PASSWORD).refresh("1s")).await?;
        others[0].kill()?;
        let first = active(&[&world.vault]).await?;
        follow(world, std::slice::from_ref(&volume), first, "third").await?;
        gone(world, vec![volume]).await
    })
    .await
}
