//! The release installed, upgraded and rolled back, with pods running.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::chart::RELEASE;
use countersign_cluster::layout::KUBELET;
use countersign_cluster::node;
use countersign_cluster::pods::{LIMIT, PATH, Space, uid, until};
use countersign_cluster::secrets::SYSTEM;
use countersign_cluster::world::{Case, Kind, World, case};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("values_with_a_typo_are_refused", Kind::Harmless, typo),
        case("installed_twice_is_refused", Kind::Harmless, twice),
        case("files_stay_through_upgrade_and_rollback", Kind::Alone, upgrade).on_older(),
        case("pod_starts_once_a_rule_allows_it", Kind::Alone, allowed),
        case("release_removed_under_running_pods_and_installed_again", Kind::Node, removed),
    ]
}

async fn typo(world: Arc<World>) -> Result<()> {
    let mut values = world.values().clone();
    values["trustDomian"] = json!("example.org");
    let error = world.helm().render(&values).await.err().context("a refusal")?;
    ensure!(error.to_string().contains("trustDomian"), "{error}");
    Ok(())
}

/// Two drivers of one name would take each other's socket away.
async fn twice(world: Arc<World>) -> Result<()> {
    let space = world.space("twice").await?;
    let refused = world.helm().install_another("another", space.name(), world.values()).await;
    let error = refused.err().context("a refusal")?.to_string();
    for part in ["exists and cannot be imported", RELEASE] {
        ensure!(error.contains(part), "it does not say {part}: {error}");
    }
    let left = world.helm().must(&["list", "--short", "--namespace", space.name()]).await?;
    ensure!(left.trim().is_empty(), "a release is left: {left}");
    let pods = space.ready("app.kubernetes.io/instance=another").await?;
    ensure!(pods.is_empty(), "{} pods are left", pods.len());
    space.remove().await
}

/// Says every second tenth whether its file can be read.
const WATCHER: &str = r#"while :; do cat "$0/p" >/dev/null || echo missing; sleep 0.05; done"#;

async fn upgrade(world: Arc<World>) -> Result<()> {
    let space = world.space("upgrade").await?;
    let asks = [
        ("countersign.dev/inject", "true"),
        ("secret.countersign.dev/p", "sops:e2e-upgrade.db#password"),
        ("countersign.dev/refresh", "1s"),
    ];
    let mut manifest = space.manifest("watcher", &asks);
    manifest["spec"]["containers"][0]["command"] = json!(["sh", "-c", WATCHER, PATH]);
    space.start_from(&manifest).await?;
    let system = world.system().await?;
    // One that is not ready for a moment, as on a busy machine, is one all the same.
    let before = rolled(&system, &[]).await?;
    let mut values = world.values().clone();
    values["node"] = json!({"podAnnotations": {"e2e.test/version": "2"}});
    values["issuer"] = json!({"podAnnotations": {"e2e.test/version": "2"}});
    world.helm().install(&values).await?;
    let between = rolled(&system, &before).await?;
    space.start("on-the-new", &asks[1..]).await?;
    world.helm().must(&["rollback", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "3m"]).await?;
    rolled(&system, &between).await?;
    world.store().await?.write("e2e-upgrade.db", &json!({"password": "after"})).await?;
    for pod in ["watcher", "on-the-new"] {
        space.file_becomes(pod, "p", "after").await?;
    }
    let log = space.log("watcher", "main").await?;
    ensure!(log.is_empty(), "the file was not there all the while: {log}");
    space.remove().await
}

/// Waits until every node has its pod of driver and agent ready, and all of them are others than `before`.
async fn rolled(system: &Space, before: &[String]) -> Result<Vec<String>> {
    until(LIMIT, "a ready pod of driver and agent on each node, other than before", async || {
        let wanted = system.api::<DaemonSet>().get("countersign-node").await?.status.context("a status")?;
        let pods = system.ready("app.kubernetes.io/component=node").await?;
        let now: Vec<_> = pods.iter().map(|pod| Ok(uid(pod)?.to_owned())).collect::<Result<_>>()?;
        let all = now.len() == usize::try_from(wanted.desired_number_scheduled)?;
        Ok((all && now.iter().all(|uid| !before.contains(uid))).then_some(now))
    })
    .await
}

async fn allowed(world: Arc<World>) -> Result<()> {
    let space = world.space("allowed").await?;
    let asks =
        [("countersign.dev/inject", "true"), ("secret.countersign.dev/p", "sops:e2e-other.db#password")];
    space.create(&space.manifest("hopeful", &asks)).await?;
    space.event("hopeful", &["FailedMount", "e2e-other.db"]).await?;
    let mut values = world.values().clone();
    let rules = values.pointer_mut("/sops/allow").and_then(|rules| rules.as_array_mut()).context("rules")?;
    let id = format!("spiffe://{}/ns/e2e-allowed/sa/default", countersign_cluster::chart::TRUST_DOMAIN);
    rules.push(json!({"id": id, "paths": ["e2e-other.db"]}));
    world.helm().install(&values).await?;
    space.running("hopeful").await?;
    ensure!(space.file("hopeful", "p").await? == "another's");
    world.helm().install(world.values()).await?;
    space.remove().await
}

/// What docs/install.md says of a release that is removed before its pods.
async fn removed(world: Arc<World>) -> Result<()> {
    let space = world.space("removed").await?;
    let (store, key) = (world.store().await?, "e2e-removed.live");
    store.write(key, &json!({"password": "before"})).await?;
    let reference = format!("sops:{key}#password");
    let asks = [("secret.countersign.dev/p", reference.as_str()), ("countersign.dev/refresh", "1s")];
    space.start("stays", &asks).await?;
    let goes = space.start("goes", &asks).await?;
    world.helm().must(&["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "3m"]).await?;
    let seen = without_release(&world, &space, &asks).await;
    world.helm().install(world.values()).await?;
    seen?;
    space.gone("goes").await?;
    let uid = uid(&goes)?;
    let gone = async || Ok((node::volumes(uid)?.is_empty() && !node::directory(uid).exists()).then_some(()));
    until(LIMIT, "unmounted and removed", gone).await?;
    // The one that runs is followed again, with what was written while nobody looked.
    space.file_becomes("stays", "p", "meanwhile").await?;
    for pod in ["stays", "bare"] {
        space.delete(pod).await?;
    }
    space.remove().await
}

/// Pods go on as they are, nothing of ours is left beside their volumes, and who comes now is given nothing.
async fn without_release(world: &World, space: &Space, asks: &[(&str, &str)]) -> Result<()> {
    let cluster = world.node()?;
    let ours = ["--selector", "app.kubernetes.io/name=countersign", "--output", "name"];
    for kinds in [
        "csidrivers,clusterroles,clusterrolebindings,validatingadmissionpolicies,mutatingwebhookconfigurations",
        "daemonsets,deployments,pods,services,configmaps,serviceaccounts,roles,rolebindings,poddisruptionbudgets",
    ] {
        let gone = async || {
            let left = cluster.kubectl(&[&["get", kinds, "--namespace", SYSTEM], &ours[..]].concat())?;
            Ok(left.trim().is_empty().then_some(()))
        };
        until(LIMIT, "gone", gone).await.with_context(|| kinds.to_owned())?;
    }
    for entry in fs::read_dir(Path::new(KUBELET).join("plugins_registry"))? {
        let name = entry?.file_name();
        ensure!(!name.to_string_lossy().contains("countersign"), "{} is left", name.display());
    }
    world.store().await?.write("e2e-removed.live", &json!({"password": "meanwhile"})).await?;
    ensure!(space.file("stays", "p").await? == "before");
    // Kubelet can't unmount it now.
    space.api::<Pod>().delete("goes", &DeleteParams::default()).await?;
    let bare = space.start("bare", asks).await?;
    ensure!(node::volumes(uid(&bare)?)?.is_empty(), "somebody gave it a volume");
    Ok(())
}
