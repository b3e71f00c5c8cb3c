//! Processes that end, hang, or are not there yet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::kubelet::State;
use countersign_tests::mount;
use countersign_tests::node::{Node, SOON, Setup, on_node};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::reader::{read, read_file};
use serde_json::json;
use tonic::Code;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("restart::of_the_driver", Needs::Mounts, || of_the_driver(Setup::default())),
        case("restart::of_the_driver_where_only_attached_mounts_can_be_cloned", Needs::Mounts, || {
            of_the_driver(Setup { driver_arguments: vec!["--clone-attached".into()], ..Setup::default() })
        }),
        case("restart::of_the_agent", Needs::Mounts, of_the_agent),
        case("restart::of_both", Needs::Mounts, of_both),
        case("restart::of_the_issuer", Needs::Mounts, of_the_issuer),
        case("restart::politely", Needs::Mounts, politely),
        case("restart::while_a_pod_goes", Needs::Mounts, while_a_pod_goes),
        case(
            "restart::publish_without_an_agent_waits_for_it",
            Needs::Mounts,
            publish_without_an_agent_waits_for_it,
        ),
        case(
            "restart::of_an_agent_in_the_middle_of_a_publish",
            Needs::Mounts,
            of_an_agent_in_the_middle_of_a_publish,
        ),
        case("restart::a_slow_agent_is_waited_for", Needs::Mounts, a_slow_agent_is_waited_for),
    ]
}

fn pod() -> Pod {
    Pod::new("payments", "api-1", "api")
}

fn asked() -> Volume {
    Volume::new().secret("a", "sops:payments/db#password").refresh("1s")
}

fn write(node: &Node, value: &str) -> Result<()> {
    node.store.write("payments/db", &json!({"password": value}))
}

async fn of_the_driver(setup: Setup) -> Result<()> {
    on_node(setup, async |node| {
        write(node, "one")?;
        let mut volume = node.published(&pod(), asked()).await?;
        node.kill_driver()?;
        ensure!(read_file(&volume.target(), "a")? == "one", "files stay");
        write(node, "two")?;
        node.arrives(&volume, "a", "two").await.context("the agent goes on without the driver")?;
        node.start_driver().await?;
        volume.publish_once().await?;
        ensure!(mount::beneath(&node.layout.kubelet_root)?.len() == 1, "mounted once");
        write(node, "three")?;
        node.arrives(&volume, "a", "three").await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn of_the_agent() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&pod(), asked()).await?;
        let before = read(&volume.target())?;
        node.kill_agent()?;
        ensure!(read(&volume.target())? == before, "files stay");
        // Kubelet's republish finds no agent: an error would be no harm, but the driver need not make one.
        drop(volume.publish_once().await);
        ensure!(read(&volume.target())? == before, "a republish takes nothing away");
        write(node, "two")?;
        node.start_agent().await?;
        node.arrives_by_republish(&mut volume, "a", "two").await?;
        ensure!(mount::beneath(&node.layout.kubelet_root)?.len() == 1, "mounted once");
        volume.unpublish(SOON).await
    })
    .await
}

async fn of_both() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&pod(), asked()).await?;
        node.kill_agent()?;
        node.kill_driver()?;
        ensure!(read_file(&volume.target(), "a")? == "one", "files stay");
        write(node, "two")?;
        node.start_agent().await?;
        node.start_driver().await?;
        node.arrives_by_republish(&mut volume, "a", "two").await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn replicas(node: &Node, state: &str) -> Result<Option<f64>> {
    Ok(node.metrics().await?.sum("countersign_issuer_replicas", &[&format!("state=\"{state}\"")]))
}

async fn of_the_issuer() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&pod(), asked()).await?;
        node.issuer.take().context("the issuer")?.kill()?;
        write(node, "two")?;
        node.arrives(&volume, "a", "two").await.context("what has an identity goes on")?;
        let mut other = node.volume(&Pod::new("payments", "billing-1", "billing"), asked());
        let status = other.publish_once().await.err().context("no issuer, no identity")?;
        ensure!(status.code() == Code::Unavailable, "{status:?}");
        ensure!(status.message().contains("issuer"), "{}", status.message());
        let reached = node.metrics().await?.sum("countersign_identity_source_reached", &[]);
        ensure!(reached == Some(0.0), "the metric says {reached:?}");
        ensure!(replicas(node, "failing").await? == Some(1.0), "no replica is said to fail");
        node.start_issuer().await?;
        other.publish(SOON).await?;
        let reached = node.metrics().await?.sum("countersign_identity_source_reached", &[]);
        ensure!(reached == Some(1.0), "the metric says {reached:?}");
        ensure!(replicas(node, "answering").await? == Some(1.0), "no replica is said to answer");
        other.unpublish(SOON).await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn politely() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&pod(), asked()).await?;
        for round in 0..2 {
            let driver = node.driver.take().context("the driver")?.terminate(Duration::from_secs(10)).await?;
            ensure!(driver.success(), "the driver: {driver}");
            ensure!(
                std::fs::read_dir(node.kubelet.registry())?.next().is_none(),
                "its registration socket is gone"
            );
            let agent = node.agent.take().context("the agent")?.terminate(Duration::from_secs(10)).await?;
            ensure!(agent.success(), "the agent: {agent}");
            ensure!(!read_file(&volume.target(), "a")?.is_empty(), "files stay");
            node.start_agent().await?;
            node.start_driver().await?;
            let value = format!("round {round}");
            write(node, &value)?;
            node.arrives_by_republish(&mut volume, "a", &value).await?;
        }
        let issuer = node.issuer.take().context("the issuer")?.terminate(Duration::from_secs(10)).await?;
        ensure!(issuer.success(), "the issuer: {issuer}");
        volume.unpublish(SOON).await
    })
    .await
}

async fn while_a_pod_goes() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let mut volume = node.published(&pod(), asked()).await?;
        node.kill_driver()?;
        ensure!(volume.unpublish_once().await.is_err(), "nobody there");
        ensure!(volume.state() == State::Mounted, "kubelet will ask again");
        node.kill_agent()?;
        node.start_driver().await?;
        volume.unpublish(SOON).await.context("unpublish needs no agent")?;
        node.start_agent().await
    })
    .await
}

async fn publish_without_an_agent_waits_for_it() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        node.kill_agent()?;
        let mut volume = node.volume(&pod(), asked());
        let status = volume.publish_once().await.err().context("no agent, no files")?;
        ensure!(status.code() == Code::Unavailable, "{status:?}");
        ensure!(status.message().contains("agent"), "{}", status.message());
        ensure!(mount::beneath(&node.layout.kubelet_root)?.is_empty(), "nothing is mounted");
        node.start_agent().await?;
        volume.publish(SOON).await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn of_an_agent_in_the_middle_of_a_publish() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let agent = node.agent.take().context("the agent")?;
        agent.pause()?;
        let mut volume = node.volume(&pod(), asked());
        let ends = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            agent.kill()
        };
        let (outcome, killed) = futures_util::future::join(volume.publish_once(), ends).await;
        killed?;
        let status = outcome.err().context("the agent died")?;
        ensure!(status.code() == Code::Unavailable, "{status:?}");
        ensure!(mount::beneath(&node.layout.kubelet_root)?.is_empty(), "nothing is mounted");
        node.start_agent().await?;
        volume.publish(SOON).await?;
        volume.unpublish(SOON).await
    })
    .await
}

async fn a_slow_agent_is_waited_for() -> Result<()> {
    on_node(Setup::default(), async |node| {
        write(node, "one")?;
        let agent = node.agent.take().context("the agent")?;
        agent.pause()?;
        let mut volume = node.volume(&pod(), asked());
        let wakes = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            agent.resume()
        };
        let (outcome, woken) = futures_util::future::join(volume.publish_once(), wakes).await;
        woken?;
        outcome?;
        node.agent = Some(agent);
        volume.unpublish(SOON).await
    })
    .await
}
