//! What runs out, and what hangs: files stay, and the trouble shows.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{Node, SOON, Setup, eventually, on_node};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::processes::Descriptor;
use countersign_tests::reader::read_file;
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tonic::Code;

use crate::refresh::failing;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("trouble::a_full_volume_keeps_its_files", Needs::Mounts, a_full_volume_keeps_its_files),
        case("trouble::no_more_descriptors", Needs::Mounts, no_more_descriptors),
        case("trouble::whoever_looks_is_served_later", Needs::Mounts, whoever_looks_is_served_later),
        case(
            "trouble::a_store_that_hangs_holds_up_nobody_else",
            Needs::Mounts,
            a_store_that_hangs_holds_up_nobody_else,
        ),
        case(
            "trouble::an_agent_that_hangs_leaves_the_files",
            Needs::Mounts,
            an_agent_that_hangs_leaves_the_files,
        ),
    ]
}

fn asked() -> Volume {
    Volume::new().secret("a", "sops:payments/db#password").refresh("1s")
}

fn write(node: &Node, value: &str) -> Result<()> {
    node.store.write("payments/db", &json!({"password": value}))
}

/// The volume as the agent holds it, writable: through the agent's own descriptor, as only root can.
fn writable(node: &Node) -> Result<PathBuf> {
    let pid = node.agent.as_ref().context("the agent")?.pid();
    for descriptor in Descriptor::all(pid)? {
        let path = PathBuf::from(format!("/proc/{pid}/fd/{}", descriptor.number));
        if fs::symlink_metadata(path.join("..data")).is_ok() {
            return Ok(path);
        }
    }
    anyhow::bail!("the agent holds no volume")
}

async fn a_full_volume_keeps_its_files() -> Result<()> {
    on_node(Setup { capacity: "256KiB", ..Setup::default() }, async |node| {
        write(node, "one")?;
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), asked()).await?;
        let filler = writable(node)?.join("filler");
        let written = fs::write(&filler, vec![0_u8; 64 << 20]);
        ensure!(
            written.is_err_and(|e| e.kind() == std::io::ErrorKind::StorageFull),
            "the volume can be filled"
        );
        write(node, &"two".repeat(10_000))?;
        failing(node).await?;
        ensure!(read_file(&volume.target(), "a")? == "one", "the last good files stay");
        volume.publish_once().await.context("a republish never fails for it")?;
        fs::remove_file(&filler)?;
        node.arrives(&volume, "a", &"two".repeat(10_000)).await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn no_more_descriptors() -> Result<()> {
    on_node(Setup { agent_descriptors: Some(48), ..Setup::default() }, async |node| {
        write(node, "one")?;
        let mut volumes = Vec::new();
        let (mut refused, status) = loop {
            ensure!(volumes.len() < 48, "48 descriptors are enough for {} volumes", volumes.len());
            let mut volume =
                node.volume(&Pod::new("payments", &format!("api-{}", volumes.len()), "api"), asked());
            match volume.publish_once().await {
                Ok(()) => volumes.push(volume),
                Err(status) => break (volume, status),
            }
        };
        ensure!(
            matches!(status.code(), Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded),
            "{status:?}"
        );
        for volume in &volumes {
            ensure!(read_file(&volume.target(), "a")? == "one", "what is there stays");
        }
        ensure!(volumes.len() > 4, "room for {} volumes only", volumes.len());
        for mut volume in volumes.split_off(volumes.len() - 4) {
            volume.unpublish(SOON).await?;
        }
        refused.publish(SOON).await.context("there is room again")?;
        write(node, "two")?;
        volumes.push(refused);
        for volume in &mut volumes {
            node.arrives(volume, "a", "two").await?;
            volume.unpublish(SOON).await?;
        }
        Ok(())
    })
    .await
}

/// An agent without descriptors lets an operator wait who asks what the stores answered, and goes on.
async fn whoever_looks_is_served_later() -> Result<()> {
    let limit = 48;
    on_node(Setup { agent_descriptors: Some(limit), ..Setup::default() }, async |node| {
        write(node, "one")?;
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), asked()).await?;
        let mut crowd = Vec::new();
        for _ in 0..limit {
            crowd.push(TcpStream::connect(node.agent_http).await?);
        }
        let none_left = async || node.descriptors().is_ok_and(|[_, agent]| agent.len() >= limit as usize);
        eventually(SOON, "no descriptor left", none_left).await?;
        let mut looking = UnixStream::connect(node.layout.link.join("answers.sock")).await?;
        ensure!(read_file(&volume.target(), "a")? == "one", "files stay");
        drop(crowd);
        let mut list = String::new();
        looking.read_to_string(&mut list).await.context("the agent went on")?;
        ensure!(list.contains("sops:") && !list.contains("one\""), "{list}");
        write(node, "two")?;
        node.arrives(&volume, "a", "two").await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn a_store_that_hangs_holds_up_nobody_else() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), asked()).await?;
        // Who opens a pipe that nobody writes waits for ever.
        mkfifoat(CWD, node.store.file("payments/hangs"), Mode::from_raw_mode(0o644))?;
        let hanging = Volume::new().secret("x", "sops:payments/hangs#x");
        let mut other = node.volume(&Pod::new("payments", "api-2", "api"), hanging);
        let goes_on = async {
            write(node, "two")?;
            node.arrives(&volume, "a", "two").await
        };
        let tries = tokio::time::timeout(Duration::from_secs(100), other.publish_once());
        let (outcome, went_on) = futures_util::future::join(tries, goes_on).await;
        went_on?;
        let status =
            outcome.context("an answer within kubelet's patience")?.err().context("no secret, no files")?;
        ensure!(status.message().contains("sops"), "{status:?}");
        other.unpublish(SOON).await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn an_agent_that_hangs_leaves_the_files() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), asked()).await?;
        node.agent.as_ref().context("the agent")?.pause()?;
        write(node, "two")?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        ensure!(read_file(&volume.target(), "a")? == "one", "files stay");
        node.agent.as_ref().context("the agent")?.resume()?;
        node.arrives(&volume, "a", "two").await?;
        volume.unpublish(SOON).await
    })
    .await
}
