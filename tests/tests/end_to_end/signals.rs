//! Signals on change between the real processes: agent, driver, signaller and back. Real pods are told on a real node.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{Node, SOON, Setup, eventually, on_node};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::processes::{Binaries, Process};
use countersign_tests::scratch::Scratch;
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("signals::are_asked_of_the_signaller", Needs::Mounts, are_asked_of_the_signaller),
        case("signals::are_refused_where_none_are_sent", Needs::Mounts, are_refused_where_none_are_sent),
    ]
}

fn asked(signal: &str) -> Volume {
    let volume = Volume::new().secret("a", "sops:payments/db#password").refresh("1s");
    volume.with("countersign.dev/on-change", signal)
}

fn write(node: &Node, value: &str) -> Result<()> {
    node.store.write("payments/db", &json!({"password": value}))
}

async fn are_asked_of_the_signaller() -> Result<()> {
    let scratch = Scratch::new()?;
    let directory = scratch.directory("signals", 0o700)?;
    let log = scratch.path().join("signaller.log");
    let mut command = Command::new(Binaries::find()?.driver);
    command.args(["signaller", "--log-format=json", "--signals"]).arg(&directory);
    let signaller = Process::start("signaller", command, &log)?;
    let setup =
        Setup { driver_arguments: vec![format!("--signals={}", directory.display())], ..Setup::default() };
    on_node(setup, async |node| {
        write(node, "one")?;
        let mut volume =
            node.published(&Pod::new("payments", "api-1", "api"), asked("signal:HUP@nginx")).await?;
        ensure!(told(node, "nobody").await? == 0.0, "a pod is told of its first files");
        write(node, "two")?;
        node.arrives(&volume, "a", "two").await?;
        // There is a volume and no container: the signaller has looked, and found nobody.
        let nobody = async || told(node, "nobody").await.is_ok_and(|times| times >= 1.0);
        eventually(SOON, "the signaller has answered", nobody).await?;
        ensure!(told(node, "failed").await? == 0.0, "that is no failure");
        let said = std::fs::read_to_string(&log).context("the signaller's log")?;
        ensure!(said.contains(r#""asked":"signal:HUP@nginx""#), "{said}");
        volume.unpublish(SOON).await
    })
    .await?;
    drop(signaller);
    Ok(())
}

async fn told(node: &Node, result: &str) -> Result<f64> {
    let metrics = node.metrics().await?;
    let label = format!("result=\"{result}\"");
    Ok(metrics.sum("countersign_notifications_total", &[&label]).unwrap_or_default())
}

async fn are_refused_where_none_are_sent() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        for (asked_for, said) in [
            ("signal:HUP", "signals are not sent in this cluster"),
            ("signal:KILL", "signals that end or stop a program are not sent"),
            ("post:8080/", "pods are not called in this cluster"),
        ] {
            let pod = Pod::new("payments", "api-1", "api");
            let mut volume = node.volume(&pod, asked(asked_for));
            let error = volume.publish_once().await.err().context("a refusal")?.to_string();
            ensure!(
                error.contains("countersign.dev/on-change") && error.contains(said),
                "{asked_for}: {error}"
            );
            volume.unpublish(SOON).await?;
        }
        Ok(())
    })
    .await
}
