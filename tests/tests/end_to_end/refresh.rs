//! What changes while a pod runs.

use std::time::Duration;

use anyhow::{Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{Node, SOON, Setup, eventually, on_node};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::reader::{read, read_file};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("refresh::a_changed_secret_arrives", Needs::Mounts, a_changed_secret_arrives),
        case("refresh::files_change_together", Needs::Mounts, files_change_together),
        case("refresh::a_secret_taken_away_stays", Needs::Mounts, a_secret_taken_away_stays),
        case("refresh::a_broken_file_changes_nothing", Needs::Mounts, a_broken_file_changes_nothing),
        case("refresh::identities_are_renewed", Needs::Mounts, identities_are_renewed),
    ]
}

fn pod() -> Pod {
    Pod::new("payments", "api-1", "api")
}

fn write(node: &Node, value: &str) -> Result<()> {
    node.store.write("payments/db", &json!({"password": value, "copy": value}))
}

fn asked() -> Volume {
    Volume::new()
        .secret("a", "sops:payments/db#password")
        .secret("b", "sops:payments/db#copy")
        .template("c", "{{ secret(\"sops:payments/db\").password }}")
        .refresh("1s")
}

async fn a_changed_secret_arrives() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&pod(), asked()).await?;
        for value in ["two", "three"] {
            write(node, value)?;
            node.arrives(&volume, "a", value).await?;
            ensure!(read_file(&volume.target(), "c")? == value, "the template too");
        }
        volume.unpublish(SOON).await
    })
    .await
}

async fn files_change_together() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "0")?;
        let mut volume = node.published(&pod(), asked()).await?;
        let target = volume.target();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let reader = std::thread::spawn(move || -> Result<usize> {
            let mut reads = 0;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let files = read(&target)?;
                ensure!(files.len() == 3, "a file is missing: {:?}", files.keys());
                ensure!(files["a"] == files["b"] && files["b"] == files["c"], "files of two generations");
                ensure!(!files["a"].is_empty(), "an empty file");
                reads += 1;
            }
            Ok(reads)
        });
        for value in 1..4 {
            write(node, &value.to_string())?;
            node.arrives(&volume, "a", &value.to_string()).await?;
        }
        drop(stop);
        let reads = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        ensure!(reads > 0, "the reader read");
        volume.unpublish(SOON).await
    })
    .await
}

async fn a_secret_taken_away_stays() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&pod(), asked()).await?;
        node.store.remove("payments/db")?;
        failing(node).await?;
        ensure!(read_file(&volume.target(), "a")? == "one", "the last good files stay");
        volume.publish_once().await?;
        ensure!(read_file(&volume.target(), "a")? == "one", "a republish takes nothing away");
        write(node, "two")?;
        node.arrives(&volume, "a", "two").await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn a_broken_file_changes_nothing() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&pod(), asked()).await?;
        let good = std::fs::read_to_string(node.store.file("payments/db"))?;
        // A value of another file under this file's MAC.
        std::fs::write(node.store.file("payments/db"), good.replacen("data:", "data:AAAA", 1))?;
        failing(node).await?;
        ensure!(read_file(&volume.target(), "a")? == "one", "the last good files stay");
        write(node, "two")?;
        node.arrives(&volume, "a", "two").await?;
        volume.unpublish(SOON).await
    })
    .await
}

/// The agent's metrics show that a refresh fails.
pub(crate) async fn failing(node: &Node) -> Result<()> {
    let before = failures(node).await?;
    let seen = async || failures(node).await.is_ok_and(|now| now > before);
    eventually(SOON, "the failing refresh shows in metrics", seen).await
}

async fn failures(node: &Node) -> Result<f64> {
    let metrics = node.metrics().await?;
    let sum = |labels: &[&str]| metrics.sum("countersign_turns_total", labels).unwrap_or_default();
    Ok(sum(&[]) - sum(&["result=\"ok\""]))
}

async fn identities_are_renewed() -> Result<()> {
    on_node(Setup { x509_ttl: "1m", ..Setup::default() }, async |node| {
        let mut volume = node.published(&pod(), Volume::new().x509()).await?;
        let first = read(&volume.target())?;
        let renewed = async || read(&volume.target()).is_ok_and(|files| files["tls.crt"] != first["tls.crt"]);
        eventually(Duration::from_secs(50), "a new certificate", renewed).await?;
        let second = read(&volume.target())?;
        ensure!(second["tls.key"] != first["tls.key"], "with a new key");
        ensure!(second["ca.crt"] == first["ca.crt"], "under the same root");
        volume.unpublish(SOON).await
    })
    .await
}
