//! Pods that are told of a change by a signal: who gets one, and who never does.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::pods::{LIMIT, Space, inline, until};
use countersign_cluster::world::{Case, Kind, World, case};
use serde_json::{Value, json};

use crate::change::restarts;

pub(crate) fn cases() -> Vec<Case> {
    vec![case("signals_reach_who_asked_and_nobody_else", Kind::Alone, signals)]
}

/// Says each SIGHUP it gets, and what the file held then.
const TRAP: &str = r"trap 'echo hup $(cat /secrets/p)' HUP; while :; do sleep 0.2; done";
/// The same, started by a shell that says its own.
const BENEATH: &str = r#"trap 'echo wrong one' HUP; ash -c "$0"; exit 1"#;

/// A pod with the volume, whose files change at once when the store's do.
fn pod(space: &Space, name: &str, on_change: Option<&str>, command: &[&str]) -> Value {
    let mut attributes =
        json!({"secret.countersign.dev/p": "sops:e2e-signals.db#password", "countersign.dev/refresh": "1s"});
    if let Some(text) = on_change {
        attributes["countersign.dev/on-change"] = json!(text);
    }
    let mut manifest = space.manifest(name, &[]);
    manifest["spec"]["volumes"] = json!([inline(&attributes)]);
    manifest["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "secrets", "mountPath": "/secrets", "readOnly": true}]);
    manifest["spec"]["containers"][0]["command"] = json!(command);
    manifest
}

/// Beside the first container, one that does not mount the volume.
fn with_sidecar(mut manifest: Value) -> Value {
    let mut sidecar = manifest["spec"]["containers"][0].clone();
    sidecar["name"] = json!("sidecar");
    sidecar["command"] = json!(["sh", "-c", "trap 'echo wrong one' HUP; while :; do sleep 0.2; done"]);
    sidecar["volumeMounts"] = json!([]);
    if let Some(containers) = manifest["spec"]["containers"].as_array_mut() {
        containers.push(sidecar);
    }
    manifest
}

fn shared(mut manifest: Value) -> Value {
    manifest["spec"]["shareProcessNamespace"] = json!(true);
    manifest
}

async fn signals(world: Arc<World>) -> Result<()> {
    let space = world.space("signals").await?;
    let trap = ["sh", "-c", TRAP];
    let beneath = ["sh", "-c", BENEATH, TRAP];

    // Off, as it is unless somebody wants it.
    let asks = [
        ("countersign.dev/inject", "true"),
        ("secret.countersign.dev/p", "sops:e2e-signals.db#password"),
        ("countersign.dev/on-change", "signal:HUP"),
    ];
    let refused = space.create(&space.manifest("refused", &asks)).await.err().context("a refusal")?;
    ensure!(refused.to_string().contains("signals are not sent in this cluster"), "{refused}");
    space.create(&pod(&space, "apart", Some("signal:HUP"), &trap)).await?;
    space.event("apart", &["FailedMount", "signals are not sent in this cluster", "signals.enabled"]).await?;

    let mut values = world.values().clone();
    values["signals"] = json!({"enabled": true});
    world.helm().install(&values).await?;
    space.running("apart").await?;
    let named = Some("signal:HUP@ash");
    for manifest in [
        with_sidecar(shared(pod(&space, "shared", Some("signal:HUP"), &trap))),
        with_sidecar(pod(&space, "named", named, &beneath)),
        shared(pod(&space, "named-shared", named, &beneath)),
        pod(&space, "bystander", None, &trap),
        // It would end by the signal.
        shared(pod(&space, "deaf", Some("signal:HUP"), &["sleep", "3600"])),
    ] {
        space.start_from(&manifest).await?;
    }
    world.store().await?.write("e2e-signals.db", &json!({"password": "after"})).await?;
    for name in ["apart", "shared", "named", "named-shared"] {
        let told = async || Ok(space.log(name, "main").await?.contains("hup after").then_some(()));
        until(LIMIT, "told", told).await.with_context(|| name.to_owned())?;
    }
    for name in ["bystander", "deaf"] {
        until(LIMIT, "changed", async || {
            Ok((space.exec(name, &["cat", "/secrets/p"]).await? == "after").then_some(()))
        })
        .await?;
    }
    for name in ["apart", "shared", "named", "named-shared", "bystander", "deaf"] {
        let log = space.log(name, "main").await?;
        let heard: Vec<&str> = log.lines().collect();
        let expected: &[&str] = if matches!(name, "bystander" | "deaf") { &[] } else { &["hup after"] };
        ensure!(heard == expected, "{name} heard {heard:?}");
        ensure!(restarts(&space, name).await? == 0, "{name} was ended");
    }
    for name in ["shared", "named"] {
        ensure!(space.log(name, "sidecar").await?.is_empty(), "the sidecar of {name} was signalled");
    }
    sees_nothing(&world).await?;
    world.helm().install(world.values()).await?;
    space.remove().await
}

/// Neither the agent nor the driver is given the node's processes for it, and the signaller is given nothing else.
async fn sees_nothing(world: &World) -> Result<()> {
    let system = world.system().await?;
    for pod in system.ready("app.kubernetes.io/component=node").await? {
        let spec = pod.spec.context("a spec")?;
        ensure!(spec.host_pid != Some(true), "the agent's pod is in the node's process namespace");
    }
    let signallers = system.ready("app.kubernetes.io/component=signaller").await?;
    ensure!(!signallers.is_empty(), "no signaller");
    for pod in signallers {
        let spec = pod.spec.context("a spec")?;
        let context = spec.containers[0].security_context.clone().context("a security context")?;
        ensure!(context.privileged != Some(true), "{context:?}");
        let added = context.capabilities.and_then(|capabilities| capabilities.add).unwrap_or_default();
        ensure!(added == ["KILL"], "{added:?}");
        ensure!(spec.volumes.map_or(0, |volumes| volumes.len()) == 1, "it sees more than its own directory");
    }
    Ok(())
}
