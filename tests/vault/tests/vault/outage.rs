//! Vault is away: pods that run keep their files, pods that start wait, and all of it heals by itself.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::kubelet::PodVolume;
use countersign_tests::node::{SOON, eventually};
use countersign_tests::reader::read_file;
use countersign_tests::scratch::Scratch;
use countersign_vault_tests::authority::Authority;
use countersign_vault_tests::impostor::store;
use countersign_vault_tests::liar::{Liar, Lie, VALUE};
use countersign_vault_tests::world::{Plan, World, in_world};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tonic::Code;

use crate::asking::{counted, counts_beyond, one, pod, refusal, says};
use crate::refusals::permit;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("outage::down_at_the_first_publish", Needs::Root, down_at_the_first_publish),
        case("outage::down_for_a_while_with_many_volumes", Needs::Root, down_for_a_while),
        case("outage::sealed", Needs::Root, sealed),
        case("outage::it_hangs", Needs::Root, it_hangs),
        case("outage::a_store_that_hangs_slows_no_other", Needs::Root, slows_no_other),
        case("outage::a_rate_limit_is_obeyed", Needs::Root, a_rate_limit_is_obeyed),
        case("outage::the_second_address_takes_over", Needs::Root, the_second_address_takes_over),
        case("outage::put_back_to_a_snapshot", Needs::Root, put_back_to_a_snapshot),
    ]
}

/// Reads that the agent has under way at one store at most.
const BULKHEAD: usize = 16;
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

/// One volume with secrets of three stores, one of which takes connections and answers nothing, and more pods waiting for
/// that one than it is ever asked for at once.
async fn slows_no_other() -> Result<()> {
    let authority = Authority::new("liar")?;
    let liar = Liar::start(&authority).await?;
    let folder = Scratch::new()?;
    let ca = authority.write(&folder.path().join("ca.pem"))?;
    let mut plan = Plan::default();
    plan.node.stores.insert("hangs".to_owned(), Value::Object(store(&liar.url(), &ca)));
    in_world(plan, async |world| {
        world.node.store.write("payments/db", &json!({"password": "from sops"}))?;
        let asked = one(PASSWORD)
            .secret("b", "hangs:kv/data/payments#password")
            .secret("c", "sops:payments/db#password")
            .refresh("1s");
        let mut mixed = world.node.published(&pod("mixed"), asked).await?;
        let mut alone = world.node.published(&pod("alone"), one(PASSWORD).refresh("1s")).await?;
        liar.says(|_| Some(Lie::Silence));
        let mut waiting: Vec<_> = (0..3 * BULKHEAD)
            .map(|number| {
                let asked = one(&format!("hangs:kv/data/secret-{number}#password"));
                world.node.volume(&pod(&format!("waits-{number}")), asked)
            })
            .collect();
        let waits = join_all(waiting.iter_mut().map(PodVolume::publish_once));
        let others = async {
            let asked = async || liar.count("/v1/kv/data/secret-0") > 0;
            let held_up = async || asked().await || liar.count("/v1/kv/data/payments") > 0;
            eventually(SOON, "it is asked, and does not answer", held_up).await?;
            write(world, "second").await?;
            world.node.arrives(&alone, "a", "second").await?;
            let mut new = world.node.published(&pod("new"), one(PASSWORD)).await?;
            new.unpublish(SOON).await?;
            world.node.store.write("payments/db", &json!({"password": "second from sops"}))?;
            world.node.arrives(&mixed, "a", "second").await?;
            world.node.arrives(&mixed, "c", "second from sops").await?;
            ensure!(read_file(&mixed.target(), "b")? == VALUE, "what it gave before stays");
            mixed.unpublish(SOON).await.context("a pod that uses it goes")?;
            alone.unpublish(SOON).await
        };
        let (waited, others) = tokio::join!(waits, others);
        others?;
        ensure!(waited.iter().all(Result::is_err), "nobody has got anything from it");
        for volume in &mut waiting {
            volume.unpublish(SOON).await?;
        }
        Ok(())
    })
    .await
}

/// Vault's own quota: what is over it waits as long as Vault says, and comes by itself.
async fn a_rate_limit_is_obeyed() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let root = world.vault.root();
        permit(world, &["kv/*"]).await?;
        root.write("kv/data/other", &json!({"data": {"x": "y"}})).await?;
        let shown =
            json!({"enable_rate_limit_response_headers": true, "enable_rate_limit_audit_logging": true});
        root.write("sys/quotas/config", &shown).await?;
        let quota = json!({"path": "kv/", "rate": 1, "interval": "6s"});
        root.write("sys/quotas/rate-limit/kv", &quota).await?;
        let mut first = world.node.published(&pod("api-1"), one(PASSWORD)).await?;
        let audited = world.vault.audited()?;
        let mut second = world.node.volume(&pod("api-2"), one("vault:kv/data/other#x"));
        let status = second.publish_once().await.err().context("it is over the quota")?;
        says(&status, Code::Unavailable, &["429", "rate limit"])?;
        second.publish(SOON).await.context("it comes by itself")?;
        let refused = world.vault.audit_since(audited)?;
        let refused = refused.iter().filter(|entry| entry.error.contains("quota")).count();
        ensure!(refused <= 2, "Vault was asked {refused} times too often, and kubelet asked all the time");
        first.unpublish(SOON).await?;
        second.unpublish(SOON).await
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
