//! Kubelet's root directory at another place than usual: a release that is told so works as ever, and one that is not
//! says what to set.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::layout::{KUBELET, KUBELET_ELSEWHERE};
use countersign_cluster::misplaced::{absent, left, misplaced, only_plugin};
use countersign_cluster::node;
use countersign_cluster::pods::{LIMIT, Space, name, uid, until};
use countersign_cluster::world::{Case, Kind, World, case, main_where};
use countersign_tests::http;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use rustix::process::Signal;
use serde_json::json;

const NODE_LABEL: &str = "app.kubernetes.io/component=node";

fn main() -> Result<ExitCode> {
    let cases: Vec<Case> = vec![
        case("kubelet_elsewhere_and_the_release_told_so", Kind::Node, told),
        case("kubelet_elsewhere_and_no_directory_at_the_usual_place", Kind::Node, not_told),
        case("kubelet_elsewhere_and_an_earlier_one_s_directory_at_the_usual_place", Kind::Node, stale),
    ];
    main_where(cases, KUBELET_ELSEWHERE)
}

/// From its first file to its unmount, with driver and agent replaced and killed in between.
async fn told(world: Arc<World>) -> Result<()> {
    let space = world.space("elsewhere").await?;
    let store = world.store().await?;
    store.write("e2e-elsewhere.live", &json!({"password": "before"})).await?;
    let asks =
        [("secret.countersign.dev/p", "sops:e2e-elsewhere.live#password"), ("countersign.dev/refresh", "1s")];
    let pod = space.start("stays", &asks).await?;
    let uid = uid(&pod)?;
    ensure!(space.file("stays", "p").await? == "before");
    let volumes = node::volumes(uid)?;
    let [volume] = volumes.as_slice() else { anyhow::bail!("{} volumes of one pod", volumes.len()) };
    let directory = Path::new(KUBELET_ELSEWHERE).join("pods").join(uid);
    ensure!(volume.point.starts_with(&directory) && volume.has("ro"), "{volume}");

    replaced(&world.system().await?).await?;
    for find in [node::driver, node::agent] {
        let old = node::settled(find).await?;
        node::signal(old, Signal::KILL)?;
        node::replaced(old, find).await?;
    }
    ensure!(space.file("stays", "p").await? == "before");
    store.write("e2e-elsewhere.live", &json!({"password": "after"})).await?;
    space.file_becomes("stays", "p", "after").await?;
    space.start("next", &asks).await?;

    for pod in ["stays", "next"] {
        space.delete(pod).await?;
    }
    let gone = async || Ok((node::volumes(uid)?.is_empty() && !directory.exists()).then_some(()));
    until(LIMIT, "unmounted and removed", gone).await?;
    // Kubelet's own device plugins have no other place.
    let usual = left(Path::new(KUBELET))?;
    ensure!(
        usual.iter().all(|path| path.starts_with("/var/lib/kubelet/device-plugins")),
        "{usual:?} were made"
    );
    space.remove().await
}

/// Deletes the pod of driver and agent, and waits for another.
async fn replaced(system: &Space) -> Result<()> {
    let old = system.ready(NODE_LABEL).await?.into_iter().next().context("a pod of driver and agent")?;
    system.api::<Pod>().delete(name(&old)?, &DeleteParams::default()).await?;
    until(LIMIT, "another pod of driver and agent", async || {
        let now = system.ready(NODE_LABEL).await?;
        Ok(now.iter().any(|pod| pod.metadata.uid != old.metadata.uid).then_some(()))
    })
    .await
}

async fn not_told(world: Arc<World>) -> Result<()> {
    let space = world.space("absent").await?;
    absent(&world, &space, KUBELET).await?;
    space.remove().await
}

/// Everything can be mounted, and nobody ever comes.
async fn stale(world: Arc<World>) -> Result<()> {
    let space = world.space("stale").await?;
    let usual = Path::new(KUBELET);
    let stale = ["pods", "plugins_registry"].map(|name| usual.join(name));
    for directory in &stale {
        fs::create_dir_all(directory)?;
    }
    let before = left(usual)?;
    misplaced(&world, &space, KUBELET, async |system, pod| {
        let says =
            format!("kubelet's root directory is not {KUBELET}: it has made no directory for this pod there");
        let remedy = "Set the chart's value kubeletDir";
        let heard = async || {
            // Not before its container runs.
            let log = system.log(pod, "driver").await.unwrap_or_default();
            Ok(log.lines().find(|line| line.contains(&says)).map(str::to_owned))
        };
        let line = until(LIMIT, "the reason in its log", heard).await?;
        ensure!(line.contains(remedy) && line.contains("/other/kubelet of its file system"), "{line}");
        system.event(pod, &["Unhealthy", "Readiness probe failed"]).await?;
        let status = system.api::<Pod>().get(pod).await?.status.context("a status")?;
        let address = SocketAddr::new(status.pod_ip.context("an address")?.parse()?, 9410);
        let (code, text) = http::get(address, "/readyz").await?;
        ensure!(code == 503 && text.contains(&says) && text.contains(remedy), "{code}: {text}");
        // Its liveness probe is content: nothing restarts it.
        system.exec_in(pod, "driver", &["/countersign-driver", "probe"]).await?;
        Ok(())
    })
    .await?;
    only_plugin(usual, before)?;
    for directory in stale {
        fs::remove_dir(directory)?;
    }
    space.remove().await
}
