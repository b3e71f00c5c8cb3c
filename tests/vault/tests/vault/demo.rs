//! `make demo STORE=vault`: every claim of the story holds.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use tokio::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    vec![case("demo::every_claim_holds", Needs::Root, every_claim_holds)]
}

async fn every_claim_holds() -> Result<()> {
    let demo = Command::new(env!("CARGO_BIN_EXE_countersign-vault-demo"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("the demonstration")?;
    let text = String::from_utf8_lossy(&demo.stdout);
    let last = text.lines().last().unwrap_or_default();
    ensure!(demo.status.success(), "{text}{}", String::from_utf8_lossy(&demo.stderr));
    ensure!(last.contains("all hold") && last.starts_with("7 steps"), "{last}");
    ensure!(text.contains("database user"), "with credentials of a database");
    ensure!(!text.contains("hvs."), "a token is shown");
    Ok(())
}
