//! What a refresh that changes nothing asks the allocator for: an agent that counts, and a volume whose secret is looked at
//! once a second. The agent's other work is measured beside it and taken off.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::time::sleep;

use countersign_tests::bench::report::{Quantity, Row};
use countersign_tests::node::SOON;

use super::Effort;
use super::setting::{prepare, secret, volume};
use crate::world::World;

const PROGRAM: &str = "countersign-counted-agent";
/// The count is written ten times a second.
const SETTLED: Duration = Duration::from_secs(1);

pub(super) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let program = std::env::current_exe()?.with_file_name(PROGRAM);
    anyhow::ensure!(program.exists(), "{} is missing: `make vault-bench` builds it", program.display());
    let mut world = prepare(false, Some(program)).await?;
    let count = world.node.layout.link.join("counted");
    let environment = [("COUNTED", count.to_str().context("a path of letters")?)];
    world.node.start_agent_with(&environment).await?;
    world.node.start_driver().await?;
    secret(&world, "quiet", "correct horse battery staple").await?;
    let window = effort.of(Duration::from_secs(60), Duration::from_secs(10));
    allow(&world, "kv/data/*").await?;
    let read = series(&world, &count, window, "the secret read").await?;
    allow(&world, "kv/*").await?;
    let looked = series(&world, &count, window, "its metadata looked at").await?;
    Ok(vec![read, looked])
}

async fn allow(world: &World, path: &str) -> Result<()> {
    let policy = json!({"policy": format!("path \"{path}\" {{ capabilities = [\"read\"] }}")});
    world.vault.root().write("sys/policies/acl/bench", &policy).await.map(drop)
}

async fn series(world: &World, count: &Path, window: Duration, how: &str) -> Result<Row> {
    let account = how.replace(' ', "-");
    let idle = {
        let before = counted(count)?;
        sleep(window).await;
        counted(count)?.saturating_sub(before)
    };
    let mut quiet = volume(world, &account, &account, &["quiet"], "1s");
    quiet.publish(SOON).await?;
    // Past the first looks, which find out what may be looked at.
    sleep(3 * SETTLED).await;
    let (entries, before) = (world.vault.audit()?.len(), counted(count)?);
    sleep(window).await;
    let bytes = counted(count)?.saturating_sub(before).saturating_sub(idle);
    let audit = world.vault.audit()?;
    let asked = audit.get(entries..).unwrap_or_default();
    let looks = asked.iter().filter(|entry| entry.kind == "request").count() as u64;
    anyhow::ensure!(looks > 0, "nothing was looked at");
    let answer = world.vault.root().send(Method::GET, "kv/data/quiet", Bytes::new()).await?.bytes.len();
    quiet.unpublish(SOON).await?;
    Ok(Row::new(
        format!("allocated by a refresh that changes nothing, {how}"),
        Quantity::Bytes(bytes / looks),
    )
    .floor(Quantity::Bytes(answer as u64), "Vault's answer with the secret")
    .remark(format!("{looks} looks; {} at rest taken off", Quantity::Bytes(idle))))
}

fn counted(path: &Path) -> Result<u64> {
    Ok(fs::read_to_string(path)?.trim().parse()?)
}
