//! Unpublish always ends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::mount;
use countersign_tests::node::{SOON, Setup, on_node};
use countersign_tests::pods::{Pod, Volume};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("unpublish::twice_and_of_what_never_was", Needs::Mounts, twice_and_of_what_never_was),
        case("unpublish::without_an_agent", Needs::Mounts, without_an_agent),
        case("unpublish::with_a_hanging_agent", Needs::Mounts, with_a_hanging_agent),
        case("unpublish::of_a_volume_in_use", Needs::Mounts, of_a_volume_in_use),
        case("unpublish::while_publishing", Needs::Mounts, while_publishing),
        case("unpublish::never_touches_what_is_not_ours", Needs::Mounts, never_touches_what_is_not_ours),
    ]
}

fn pod() -> Pod {
    Pod::new("payments", "api-1", "api")
}

fn asked() -> Volume {
    Volume::new().secret("a", "sops:payments/db#password").refresh("1s")
}

async fn twice_and_of_what_never_was() -> Result<()> {
    on_node(Setup::default(), async |node| {
        node.store.write("payments/db", &json!({"password": "x"}))?;
        node.volume(&pod(), asked()).unpublish_once().await.context("never published")?;
        let mut volume = node.published(&pod(), asked()).await?;
        volume.unpublish_once().await?;
        ensure!(!volume.target().exists(), "the target is gone");
        volume.unpublish_once().await.context("a second time")?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn without_an_agent() -> Result<()> {
    on_node(Setup::default(), async |node| {
        node.store.write("payments/db", &json!({"password": "x"}))?;
        let mut volume = node.published(&pod(), asked()).await?;
        node.kill_agent()?;
        volume.unpublish_once().await?;
        ensure!(mount::beneath(&node.layout.kubelet_root)?.is_empty(), "unmounted");
        volume.unpublish(SOON).await?;
        node.start_agent().await
    })
    .await
}

async fn with_a_hanging_agent() -> Result<()> {
    on_node(Setup::default(), async |node| {
        node.store.write("payments/db", &json!({"password": "x"}))?;
        let mut volume = node.published(&pod(), asked()).await?;
        node.agent.as_ref().context("the agent")?.pause()?;
        volume.unpublish_once().await?;
        ensure!(mount::beneath(&node.layout.kubelet_root)?.is_empty(), "unmounted");
        node.agent.as_ref().context("the agent")?.resume()?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn of_a_volume_in_use() -> Result<()> {
    on_node(Setup::default(), async |node| {
        node.store.write("payments/db", &json!({"password": "x"}))?;
        let mut volume = node.published(&pod(), asked()).await?;
        let held = std::fs::File::open(volume.target().join("a"))?;
        volume.unpublish_once().await?;
        ensure!(mount::beneath(&node.layout.kubelet_root)?.is_empty(), "unmounted");
        drop(held);
        volume.unpublish(SOON).await
    })
    .await
}

async fn while_publishing() -> Result<()> {
    on_node(Setup::default(), async |node| {
        node.store.write("payments/db", &json!({"password": "x"}))?;
        let agent = node.agent.take().context("the agent")?;
        agent.pause()?;
        let (mut one, mut other) = (node.volume(&pod(), asked()), node.volume(&pod(), asked()));
        other.pod = one.pod.clone();
        let goes = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let first = other.unpublish_once().await;
            agent.resume()?;
            // Either it ended the publish, or it was told to come again.
            if let Err(status) = first {
                ensure!(status.code() == tonic::Code::Aborted, "{status:?}");
            }
            Ok(())
        };
        let (published, gone) = futures_util::future::join(one.publish_once(), goes).await;
        gone?;
        drop(published);
        node.agent = Some(agent);
        one.unpublish_once().await?;
        one.unpublish(SOON).await
    })
    .await
}

async fn never_touches_what_is_not_ours() -> Result<()> {
    on_node(Setup::default(), async |node| {
        let mut volume = node.volume(&pod(), asked());
        let target = volume.target();
        std::fs::create_dir_all(&target)?;
        std::fs::write(target.join("theirs"), "x")?;
        drop(volume.unpublish_once().await);
        ensure!(std::fs::read(target.join("theirs"))? == b"x", "a file that is not ours stays");
        std::fs::remove_file(target.join("theirs"))?;
        volume.unpublish_once().await?;
        volume.unpublish(SOON).await
    })
    .await
}
