//! A release whose value `kubeletDir` is not where kubelet is: what is said, and what is left.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

use crate::pods::{LIMIT, Space, name, until};
use crate::world::World;

const ASKS: [(&str, &str); 2] =
    [("countersign.dev/inject", "true"), ("jwt.countersign.dev/token", "https://api.example.com")];

/// Gives the release this kubelet root, hands its pod on the node to `look`, and puts it right again; then a pod that has
/// waited meanwhile starts.
pub async fn misplaced(
    world: &World,
    space: &Space,
    root: &str,
    look: impl AsyncFnOnce(&Space, &str) -> Result<()>,
) -> Result<()> {
    let system = world.system().await?;
    let mut values = world.values().clone();
    values.as_object_mut().context("values")?.insert("kubeletDir".to_owned(), root.into());
    world.helm().upgrade(&values).await?;
    let seen = async {
        let pod = node_pod(&system, root).await?;
        // Once the driver before is gone, and kubelet with it has forgotten it.
        space.create(&space.manifest("waits", &ASKS)).await?;
        let words = ["FailedMount", "csi.countersign.dev not found in the list of registered CSI drivers"];
        space.event("waits", &words).await?;
        look(&system, &pod).await?;
        ensure!(restarts(&system, &pod).await? == 0, "something was restarted in vain");
        Ok(())
    };
    let seen = seen.await;
    world.helm().install(world.values()).await?;
    seen?;
    space.running("waits").await?;
    space.delete("waits").await
}

/// Where the directory is not there: kubelet says so on the release's own pod, by names that say which value is wrong.
pub async fn absent(world: &World, space: &Space, root: &str) -> Result<()> {
    let directory = Path::new(root);
    ensure!(!directory.join("plugins_registry").exists(), "{root} is a kubelet's root");
    let before = left(directory)?;
    misplaced(world, space, root, async |system, pod| {
        let missing = format!("{root}/plugins_registry is not a directory");
        let words = ["FailedMount", "\"kubeletdir-registry\"", "hostPath type check failed", &missing];
        system.event(pod, &words).await.map(drop)
    })
    .await?;
    only_plugin(directory, before)
}

/// All that kubelet makes at a wrong place is empty directories, for a volume of the pod: nothing else has come to what was
/// there before. Removes them.
pub fn only_plugin(root: &Path, before: Vec<PathBuf>) -> Result<()> {
    let plugins = root.join("plugins");
    let mut expected = before;
    expected.extend([plugins.join("csi.countersign.dev"), plugins.clone()]);
    expected.sort();
    let left = left(root)?;
    ensure!(left == expected, "{left:?} are left, and not {expected:?}");
    Ok(std::fs::remove_dir_all(plugins)?)
}

/// Everything below a directory, in order; nothing where there is none.
pub fn left(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    if !directory.exists() {
        return Ok(all);
    }
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            all.extend(left(&path)?);
        }
        all.push(path);
    }
    all.sort();
    Ok(all)
}

/// The name of the pod of driver and agent that was told this root.
async fn node_pod(system: &Space, root: &str) -> Result<String> {
    let registry = format!("{root}/plugins_registry");
    let of = ListParams::default().labels("app.kubernetes.io/component=node");
    until(LIMIT, "a pod of driver and agent with that root", async || {
        let pods = system.api::<Pod>().list(&of).await?;
        // The one before ends meanwhile, and with it the registration.
        let told = |pod: &Pod| {
            let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
            volumes.filter_map(|volume| volume.host_path.as_ref()).any(|path| path.path == registry)
        };
        let only = (pods.items.len() == 1).then(|| pods.items.into_iter().find(told)).flatten();
        only.as_ref().map(name).transpose().map(|name| name.map(str::to_owned))
    })
    .await
}

async fn restarts(system: &Space, pod: &str) -> Result<i32> {
    let status = system.api::<Pod>().get(pod).await?.status.context("a status")?;
    Ok(status.container_statuses.iter().flatten().map(|container| container.restart_count).sum())
}
