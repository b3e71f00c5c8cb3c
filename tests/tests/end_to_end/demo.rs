//! The demo holds what it claims, with mounts and without.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::free_address;
use countersign_tests::scratch::Scratch;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("demo::every_claim_holds", Needs::Mounts, || tells(&[], "9  The pod goes")),
        case("demo::every_claim_holds_where_nothing_can_be_mounted", Needs::Nothing, || {
            tells(&["--no-mounts"], "This machine lets us mount nothing")
        }),
        case("demo::the_commands_it_prints_work", Needs::Mounts, the_commands_it_prints_work),
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

/// What a reader copies into a shell: three processes, a volume, and its end.
async fn the_commands_it_prints_work() -> Result<()> {
    let scratch = Scratch::new()?;
    let prepared =
        Command::new(env!("CARGO_BIN_EXE_countersign-demo")).arg("prepare").arg(scratch.path()).output()?;
    ensure!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
    let log_file = scratch.path().join("log");
    let log = log_file.display();
    let mut script = String::from("started=\n");
    for line in
        String::from_utf8(prepared.stdout)?.replace("127.0.0.1:8443", &free_address()?.to_string()).lines()
    {
        let line = line.replace(" issuer --", &format!(" issuer --http-listen {} --", free_address()?));
        let line = line.replace("agent run --", &format!("agent run --http-listen {} --", free_address()?));
        match line.strip_suffix('&') {
            // Each needs what the one before it makes.
            Some(start) => writeln!(script, "{start}>>{log} 2>&1 & started=\"$started $!\"; sleep 1")?,
            None => writeln!(script, "{line}")?,
        }
    }
    // What the README says to try: it must be refused, with a message.
    let (demo, root) = (env!("CARGO_BIN_EXE_countersign-demo"), scratch.path().display());
    writeln!(
        script,
        "! {demo} kubelet {root} publish --pod other --service-account reporting \\\n    \
         --attribute 'secret.countersign.dev/password=sops:payments/database#password' 2>{root}/refused"
    )?;
    script.push_str("kill $started; wait\n");
    let output =
        tokio::task::spawn_blocking(move || Command::new("sh").args(["-euc", &script]).output()).await??;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = || countersign_tests::processes::tail(&log_file, 40);
    ensure!(output.status.success(), "{text}\n{}\n{}", String::from_utf8_lossy(&output.stderr), said());
    ensure!(text.contains("password -> ..data/password") && text.contains("token -> ..data/token"), "{text}");
    ensure!(text.contains("is gone"), "{text}");
    let refused = std::fs::read_to_string(scratch.path().join("refused"))?;
    ensure!(refused.contains("ns/payments/sa/reporting may not read it"), "{refused}");
    ensure!(countersign_tests::mount::beneath(scratch.path())?.is_empty(), "a mount is left");
    Ok(())
}
