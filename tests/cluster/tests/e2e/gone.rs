//! Pods that go: nothing of theirs stays.

use std::sync::Arc;

use anyhow::{Result, ensure};
use countersign_cluster::node;
use countersign_cluster::pods::{LIMIT, uid, until};
use countersign_cluster::world::{Case, Kind, World, case};
use rustix::process::Signal;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("deleted_pod_leaves_nothing", Kind::Node, deleted).on_older(),
        case("deleted_pod_leaves_nothing_while_the_agent_hangs", Kind::Node, deleted_without_agent),
    ]
}

const ASKS: [(&str, &str); 2] =
    [("secret.countersign.dev/p", "sops:e2e-gone.db#password"), ("svid.countersign.dev/x509", "c,k,b")];

async fn deleted(world: Arc<World>) -> Result<()> {
    let space = world.space("gone").await?;
    let pod = space.start("short", &ASKS).await?;
    let volumes = node::volumes(uid(&pod)?)?;
    let [volume] = volumes.as_slice() else { anyhow::bail!("{} volumes of one pod", volumes.len()) };
    ensure!(
        volume.has("ro") && volume.has("nosuid") && volume.has("nodev") && volume.has("noexec"),
        "{volume}"
    );
    ensure!(volume.has("noswap"), "{volume}");
    space.delete("short").await?;
    nothing_of(uid(&pod)?).await?;
    space.remove().await
}

async fn deleted_without_agent(world: Arc<World>) -> Result<()> {
    let space = world.space("hangs").await?;
    let pod = space.start("short", &[("jwt.countersign.dev/t", "https://a.example")]).await?;
    let agent = node::settled(node::agent).await?;
    node::signal(agent, Signal::STOP)?;
    let gone = async {
        space.delete("short").await?;
        nothing_of(uid(&pod)?).await
    };
    let gone = gone.await;
    node::signal(agent, Signal::CONT)?;
    gone?;
    // It goes on as before.
    space.start("next", &[("jwt.countersign.dev/t", "https://a.example")]).await?;
    space.remove().await
}

/// Waits until the node has neither mounts nor a directory of a pod.
async fn nothing_of(uid: &str) -> Result<()> {
    let gone = async || Ok((node::volumes(uid)?.is_empty() && !node::directory(uid).exists()).then_some(()));
    until(LIMIT, "unmounted and removed", gone).await
}
