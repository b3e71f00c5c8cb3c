//! A node starts: 250 volumes of 25 accounts with three secrets each, at once.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use tokio::time::Instant;

use countersign_tests::bench::report::{Quantity, Row};
use countersign_tests::bench::usage::{Memory, Processor};
use countersign_tests::node::SOON;

use super::setting::{secret, start, volume};
use crate::audit;

const VOLUMES: usize = 250;
const ACCOUNTS: usize = 25;
const SECRETS: [&str; 3] = ["one", "two", "three"];
/// Most that the agent may have.
const AGENT: u64 = 32 << 20;

pub(super) async fn measure() -> Result<Vec<Row>> {
    let world = start(false).await?;
    for name in SECRETS {
        secret(&world, name, "correct horse battery staple").await?;
    }
    let mut volumes: Vec<_> = (0..VOLUMES)
        .map(|number| {
            let account = format!("account-{}", number % ACCOUNTS);
            volume(&world, &format!("pod-{number}"), &account, &SECRETS, "24h")
        })
        .collect();
    let vault = world.vault.process()?;
    let agent = world.node.agent.as_ref().context("the agent")?;
    let (before, vault_before, agent_before) =
        (world.vault.audited()?, Processor::of(vault)?, Processor::of(agent)?);
    let began = Instant::now();
    try_join_all(volumes.iter_mut().map(|volume| volume.publish(Duration::from_secs(120)))).await?;
    let took = began.elapsed();
    let vault_cpu = Processor::of(vault)?.since(&vault_before);
    let agent_cpu = Processor::of(agent)?.since(&agent_before);
    let asked = world.vault.audit_since(before)?;
    let count = |entries: usize| Quantity::Count(entries as u64);
    let logins = asked.iter().filter(|entry| entry.is_login()).count();
    let reads = asked.iter().filter(|entry| entry.asks_for("kv/data")).count();
    let all = asked.iter().filter(|entry| entry.kind == "request").count();
    let answers = audit::answered(&asked)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let memory = Memory::of(agent)?;
    for volume in &mut volumes {
        volume.unpublish(SOON).await?;
    }
    Ok(vec![
        Row::new("storm of 250, logins", count(logins))
            .target(count(ACCOUNTS))
            .floor(count(ACCOUNTS), "identities"),
        Row::new("storm of 250, reads", count(reads))
            .target(count(ACCOUNTS * SECRETS.len()))
            .floor(count(ACCOUNTS * SECRETS.len()), "identities × secrets")
            .remark(format!("{all} requests in all")),
        Row::new("storm of 250, all published", Quantity::Time(took))
            .floor(Quantity::Time(answers), "Vault's answers, one after the other"),
        Row::new("storm of 250, Vault's processor time", Quantity::Time(vault_cpu))
            .remark(format!("the agent's: {}", Quantity::Time(agent_cpu))),
        Row::new("agent RSS, 250 volumes", Quantity::Bytes(memory.resident))
            .target(Quantity::Bytes(AGENT))
            .remark(format!("anonymous {}", Quantity::Bytes(memory.anonymous))),
    ])
}
