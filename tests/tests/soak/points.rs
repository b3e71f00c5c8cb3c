//! The driver is killed at every step it knows, started again, and asked again: the end is the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::kubelet::PodVolume;
use countersign_tests::mount;
use countersign_tests::node::{Node, SOON, Setup};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::processes::workspace;
use countersign_tests::reader::read;
use serde_json::json;

use crate::random::say;

const DIE: &str = "COUNTERSIGN_DIE_AT";
/// Republishes until one reaches the agent, at most.
const LOOKS: usize = 500;
const STOP: &str = "COUNTERSIGN_STOP_AT";

/// Every point that the driver's sources name.
fn points() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    collect(&workspace().join("driver/src"), &mut found)?;
    Ok(found)
}

fn collect(directory: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let names = text.split("fault::point(\"").skip(1).filter_map(|rest| rest.split('"').next());
        found.extend(names.map(str::to_owned));
    }
    Ok(())
}

pub(crate) async fn the_driver_dies_at_every_step() -> Result<()> {
    let points = points()?;
    ensure!(points.len() > 10, "the driver's sources name {} points", points.len());
    let mut reached = BTreeSet::new();
    for arguments in [vec![], vec!["--clone-attached".to_owned()]] {
        let mut node = Node::start(Setup { driver_arguments: arguments, ..Setup::default() }).await?;
        node.store.write("payments/db", &json!({"password": "x"}))?;
        for point in &points {
            let outcome = die_at(&mut node, point).await;
            let died = outcome.map_err(|error| anyhow::anyhow!("{point}: {error:#}\n{}", node.said()))?;
            if died {
                reached.insert(point.clone());
            }
        }
    }
    let missed: Vec<_> = points.difference(&reached).collect();
    ensure!(missed.is_empty(), "never reached: {missed:?}");
    say(&format!("the driver died at each of {} points and lost nothing", points.len()));
    Ok(())
}

fn volume(node: &Node) -> PodVolume {
    node.volume(&Pod::new("payments", "api-1", "api"), Volume::new().secret("a", "sops:payments/db#password"))
}

/// Whether the driver got to the point and died there. The volume is whole afterwards, and nothing is left of it
/// once the pod is gone.
async fn die_at(node: &mut Node, point: &str) -> Result<bool> {
    let mut volume = volume(node);
    let stage = point.split('.').next().unwrap_or_default();
    if stage != "publish" {
        volume.publish(SOON).await?;
    }
    if point == "recovery.repaired" {
        // An older driver might have left it so.
        let remounted = Command::new("mount")
            .args(["-o", "remount,bind,rw"])
            .arg(volume.target())
            .status()
            .context("mount")?;
        ensure!(remounted.success(), "could not make the volume writable");
    }
    node.kill_driver()?;
    if stage == "republish" {
        // A new agent holds nothing: the driver has something to hand over.
        node.kill_agent()?;
        node.start_agent().await?;
    }
    let started = node.start_driver_with(&[(DIE, point)]).await;
    if stage == "recovery" {
        ensure!(started.is_err(), "the driver went past it");
    } else {
        started?;
        let mut outcome =
            if stage == "unpublish" { volume.unpublish_once().await } else { volume.publish_once().await };
        // A republish is good without the agent, and the link to it may not be up yet.
        for _ in 0..LOOKS {
            if stage != "republish" || outcome.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            outcome = volume.publish_once().await;
        }
        let mut driver = node.driver.take().context("the driver")?;
        if outcome.is_ok() {
            // Not on this way through the driver.
            node.driver = Some(driver);
            volume.unpublish(SOON).await?;
            node.is_clean().await?;
            return Ok(false);
        }
        let status = driver.ended(Duration::from_secs(10)).await.context("the driver lives on")?;
        ensure!(!status.success(), "{status}");
    }
    node.start_driver().await?;
    if stage != "unpublish" {
        volume.publish(SOON).await?;
        let files = read(&volume.target())?;
        ensure!(files.get("a").is_some_and(|bytes| bytes == b"x"), "the files are whole");
        let mount = mount::at(&volume.target())?.context("a mount")?;
        ensure!(mount.options.iter().any(|option| option == "ro"), "{mount}");
        ensure!(mount::beneath(&node.layout.kubelet_root)?.len() == 1, "mounted once");
    }
    volume.unpublish(SOON).await?;
    node.is_clean().await?;
    Ok(true)
}

pub(crate) async fn the_agent_dies_while_the_driver_is_at_a_step() -> Result<()> {
    let points: Vec<_> = points()?.into_iter().filter(|point| point.starts_with("publish.")).collect();
    let mut node = Node::start(Setup::default()).await?;
    node.store.write("payments/db", &json!({"password": "x"}))?;
    for point in &points {
        let outcome = agent_dies_at(&mut node, point).await;
        outcome.map_err(|error| anyhow::anyhow!("{point}: {error:#}\n{}", node.said()))?;
    }
    Ok(())
}

async fn agent_dies_at(node: &mut Node, point: &str) -> Result<()> {
    let mut volume = volume(node);
    node.kill_driver()?;
    node.start_driver_with(&[(STOP, point)]).await?;
    let driver = node.driver.take().context("the driver")?;
    let agent = node.agent.take().context("the agent")?;
    let meanwhile = async {
        for _ in 0..1000 {
            if driver.status()?.state == 'T' {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        agent.kill()?;
        driver.resume()
    };
    let (_, resumed) = futures_util::future::join(volume.publish_once(), meanwhile).await;
    resumed?;
    node.driver = Some(driver);
    node.start_agent().await?;
    // The driver stops at that point again with each try: let another one go on.
    node.kill_driver()?;
    node.start_driver().await?;
    volume.publish(SOON).await?;
    ensure!(read(&volume.target())?.len() == 1, "the files are whole");
    ensure!(mount::beneath(&node.layout.kubelet_root)?.len() == 1, "mounted once");
    volume.unpublish(SOON).await?;
    node.is_clean().await
}
