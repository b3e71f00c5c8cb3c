//! Secrets that change under a pod that runs.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::pods::{PATH, Space};
use countersign_cluster::world::{Case, Kind, World, case};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![case("changed_secret_follows_in_whole_sets", Kind::Harmless, change)]
}

/// Reads both files of a set again and again, through `..data` resolved once, and says when they were not of one set.
const READER: &str = r#"
while :; do
  set=$(readlink "$0/..data") && one=$(cat "$0/$set/one") && two=$(cat "$0/$set/two") || { echo broken; continue; }
  [ "$one" = "$two" ] || echo "torn: $one $two"
  [ "$one" = "$last" ] || { echo "set $one"; last=$one; }
done"#;

async fn change(world: Arc<World>) -> Result<()> {
    let space = world.space("change").await?;
    let store = world.store().await?;
    let mut manifest = space.manifest(
        "reader",
        &[
            ("countersign.dev/inject", "true"),
            ("secret.countersign.dev/one", "sops:e2e-change.pair#one"),
            ("secret.countersign.dev/two", "sops:e2e-change.pair#two"),
            ("countersign.dev/refresh", "1s"),
        ],
    );
    manifest["spec"]["containers"][0]["command"] = json!(["sh", "-c", READER, PATH]);
    space.start_from(&manifest).await?;
    for set in ["2", "3"] {
        store.write("e2e-change.pair", &json!({"one": set, "two": set})).await?;
        space.file_becomes("reader", "one", set).await?;
    }
    let log = space.log("reader", "main").await?;
    ensure!(log.lines().collect::<Vec<_>>() == ["set 1", "set 2", "set 3"], "the reader saw: {log}");
    ensure!(restarts(&space, "reader").await? == 0);
    space.remove().await
}

/// How often a pod's first container was started again.
pub(crate) async fn restarts(space: &Space, pod: &str) -> Result<i32> {
    let status = space.api::<Pod>().get(pod).await?.status.context("a status")?;
    let containers = status.container_statuses.context("containers")?;
    Ok(containers.first().context("a container")?.restart_count)
}
