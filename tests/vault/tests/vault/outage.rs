//! Vault is away: pods that run keep their files, pods that start wait, and all of it heals by itself.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, eventually};
use countersign_tests::reader::read_file;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::json;
use tonic::Code;

use crate::asking::{counted, counts_beyond, one, pod, refusal, says};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("outage::down_at_the_first_publish", Needs::Root, down_at_the_first_publish),
        case("outage::down_for_a_while_with_many_volumes", Needs::Root, down_for_a_while),
        case("outage::sealed", Needs::Root, sealed),
        case("outage::it_hangs", Needs::Root, it_hangs),
        case("outage::the_second_address_takes_over", Needs::Root, the_second_address_takes_over),
        case("outage::put_back_to_a_snapshot", Needs::Root, put_back_to_a_snapshot),
    ]
}

const PASSWORD: &str = "vault:kv/data/payments#password";

async fn write(world: &World, value: &str) -> Result<()> {
    world.vault.root().write("kv/data/payments", &json!({"data": {"password": value}})).await.map(drop)
}

async fn down_at_the_first_publish() -> Result<()> {
    in_world(Plan::default(), async |world| {
        world.vault.kill()?;
        let mut volume = world.node.volume(&pod("api-1"), one(PASSWORD));
        let status = volume.publish_once().await.err().context("there is no Vault")?;
        says(&status, Code::Unavailable, &["store vault", &world.vault.address().to_string()])?;
        world.vault.resume().await?;
        volume.publish(SOON).await.context("it starts by itself")?;
        ensure!(read_file(&volume.target(), "a")? == "first-password", "with its secret");
        volume.unpublish(SOON).await
    })
    .await
}

async fn failures(world: &World) -> Result<f64> {
    let all = counted(&world.node, "countersign_fetch_total", &["store=\"vault\""]).await?;
    let ok = counted(&world.node, "countersign_fetch_total", &["store=\"vault\"", "result=\"ok\""]).await?;
    Ok(all - ok)
}

/// Waits until the agent has failed to fetch that often since `before`.
async fn fails(world: &World, before: f64, times: f64) -> Result<()> {
    let more = async || failures(world).await.is_ok_and(|now| now >= before + times);
    eventually(Duration::from_secs(60), "fetches fail", more).await
}

fn log_lines(world: &World) -> Result<usize> {
    let log = world.node.agent.as_ref().context("the agent")?.log().to_owned();
    Ok(fs::read_to_string(log)?.lines().count())
}

/// Files stay; the log says so once a volume; staleness is seen from outside.
async fn down_for_a_while() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let mut volumes = Vec::new();
        for number in 0..40 {
            let asked = one(PASSWORD).refresh("1s");
            volumes.push(world.node.published(&pod(&format!("api-{number}")), asked).await?);
        }
        let (before, said) = (failures(world).await?, log_lines(world)?);
        world.vault.kill()?;
        fails(world, before, 3.0).await?;
        counts_beyond(&world.node, "countersign_secret_stale_seconds", &["store=\"vault\""], 2.0).await?;
        for volume in &mut volumes {
            ensure!(read_file(&volume.target(), "a")? == "first-password", "files stay");
            volume.publish_once().await.context("a republish never fails for it")?;
        }
        let lines = log_lines(world)? - said;
        ensure!(lines <= 2 * volumes.len(), "{lines} lines for {} volumes", volumes.len());
        world.vault.resume().await?;
        write(world, "second").await?;
        for volume in &mut volumes {
            world.node.arrives(volume, "a", "second").await?;
        }
        let lines = log_lines(world)? - said;
        ensure!(
            lines <= 3 * volumes.len() + 10,
            "{lines} lines for {} volumes, recovery included",
            volumes.len()
        );
        for volume in &mut volumes {
            volume.unpublish(SOON).await?;
        }
        Ok(())
    })
    .await
}

async fn sealed() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD).refresh("1s")).await?;
        let before = failures(world).await?;
        world.vault.seal().await?;
        fails(world, before, 1.0).await?;
        ensure!(read_file(&volume.target(), "a")? == "first-password", "files stay");
        let status = refusal(&world.node, "vault:kv/data/payments#username").await?;
        says(&status, Code::Unavailable, &["sealed"])?;
        world.vault.unseal().await?;
        write(world, "second").await?;
        world.node.arrives(&volume, "a", "second").await?;
        volume.unpublish(SOON).await
    })
    .await
}

/// It takes connections and answers nothing: the deadline is ours, and another store is none the worse for it.
async fn it_hangs() -> Result<()> {
    let store = serde_json::Map::from_iter([("timeout".to_owned(), json!("2s"))]);
    in_world(Plan { store, ..Plan::default() }, async |world| {
        world.node.store.write("payments/db", &json!({"password": "from sops"}))?;
        let mut here = world.node.published(&pod("api-1"), one(PASSWORD).refresh("1s")).await?;
        world.vault.pause()?;
        let mut waits = world.node.volume(&pod("api-2"), one("vault:kv/data/payments#username?version=1"));
        let mut other = world.node.volume(&pod("api-3"), one("sops:payments/db#password"));
        let (hanging, healthy) = tokio::join!(waits.publish_once(), other.publish_once());
        healthy.context("another store")?;
        let status = hanging.err().context("Vault answers nothing")?;
        ensure!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{status:?}");
        other.unpublish(SOON).await.context("nor is a pod that goes")?;
        ensure!(read_file(&here.target(), "a")? == "first-password", "files stay");
        world.vault.go_on()?;
        waits.publish(SOON).await?;
        write(world, "second").await?;
        world.node.arrives(&here, "a", "second").await?;
        waits.unpublish(SOON).await?;
        here.unpublish(SOON).await
    })
    .await
}

async fn the_second_address_takes_over() -> Result<()> {
    let dead = countersign_tests::node::free_address()?;
    let mut plan = Plan::default();
    plan.more_addresses.push(format!("https://{dead}"));
    in_world(plan, async |world| {
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD)).await?;
        ensure!(
            read_file(&volume.target(), "a")? == "first-password",
            "the first is dead, the second is not"
        );
        volume.unpublish(SOON).await
    })
    .await
}

/// Tokens that were made after the snapshot are unknown now.
async fn put_back_to_a_snapshot() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let snapshot = world.vault.snapshot().await?;
        let mut volume = world.node.published(&pod("api-1"), one(PASSWORD).refresh("1s")).await?;
        write(world, "lost").await?;
        world.node.arrives(&volume, "a", "lost").await?;
        world.vault.restore(snapshot).await?;
        // A token that is refused in its first minute is not doubted: its policy is.
        let back = async || read_file(&volume.target(), "a").is_ok_and(|now| now == "first-password");
        eventually(Duration::from_secs(120), "the value of the snapshot", back).await?;
        write(world, "after").await?;
        world.node.arrives(&volume, "a", "after").await?;
        volume.unpublish(SOON).await
    })
    .await
}
