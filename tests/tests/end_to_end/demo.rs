//! The demo holds what it claims, with mounts and without.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("demo::every_claim_holds", Needs::Mounts, || tells(&[], "9  The pod goes")),
        case("demo::every_claim_holds_where_nothing_can_be_mounted", Needs::Nothing, || {
            tells(&["--no-mounts"], "This machine lets us mount nothing")
        }),
    ]
}

async fn tells(arguments: &[&str], expected: &str) -> Result<()> {
    let demo = PathBuf::from(env!("CARGO_BIN_EXE_countersign-demo"));
    let mut command = Command::new(demo);
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await?.context("the demo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    ensure!(text.contains(expected) && text.contains("all hold"), "{text}");
    ensure!(!text.contains('\u{1b}'), "no colours where there is no terminal");
    ensure!(!text.contains("eyJ"), "a token is shown");
    Ok(())
}
