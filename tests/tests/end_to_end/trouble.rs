//! What runs out, and what hangs: files stay, and the trouble shows.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{Node, SOON, Setup, on_node};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::processes::Descriptor;
use countersign_tests::reader::read_file;
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::json;
use tonic::Code;

use crate::refresh::failing;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("trouble::a_full_volume_keeps_its_files", Needs::Mounts, a_full_volume_keeps_its_files),
        case("trouble::no_more_descriptors", Needs::Mounts, no_more_descriptors),
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
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), asked()).await?;
        let agent = node.agent.as_ref().context("the agent")?;
        let open =
            Descriptor::all(agent.pid())?.iter().map(|d| u64::from(d.number)).max().unwrap_or_default();
        let before = agent.limit_descriptors(open + 1)?;
        let mut other = node.volume(&Pod::new("payments", "api-2", "api"), asked());
        let status = other.publish_once().await.err().context("no descriptor is left for another volume")?;
        ensure!(
            matches!(status.code(), Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded),
            "{status:?}"
        );
        ensure!(read_file(&volume.target(), "a")? == "one", "what is there stays");
        node.agent.as_ref().context("the agent")?.limit_descriptors(before)?;
        other.publish(SOON).await?;
        write(node, "two")?;
        node.arrives(&volume, "a", "two").await?;
        node.arrives(&other, "a", "two").await?;
        other.unpublish(SOON).await?;
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
