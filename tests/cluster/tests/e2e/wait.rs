//! Pods that may not, or cannot yet, have what they ask for: what their user is told, and when they start.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use countersign_cluster::pods::{PATH, inline};
use countersign_cluster::world::{Case, Kind, World, case};
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("another_namespace_s_secret_is_denied", Kind::Harmless, denied).on_older(),
        case("pod_starts_once_its_secret_is_there", Kind::Harmless, later),
        case("wrong_requests_are_refused_at_apply", Kind::Harmless, refused).on_older(),
        case("restricted_namespace_admits_our_pods", Kind::Harmless, restricted).on_older(),
    ]
}

const INJECT: (&str, &str) = ("countersign.dev/inject", "true");

async fn denied(world: Arc<World>) -> Result<()> {
    let space = world.space("denied").await?;
    let asks = [INJECT, ("secret.countersign.dev/p", "sops:e2e-other.db#password")];
    space.create(&space.manifest("thief", &asks)).await?;
    let told = "secret.countersign.dev/p: sops:e2e-other.db: spiffe://e2e.test/ns/e2e-denied/sa/default may not read it";
    let event = space.event("thief", &["FailedMount", told]).await?;
    ensure!(!event.contains("another's"), "{event}");
    ensure!(event.contains("allow"), "no remedy in {event}");
    space.delete("thief").await?;
    space.remove().await
}

async fn later(world: Arc<World>) -> Result<()> {
    let space = world.space("later").await?;
    let asks = [INJECT, ("secret.countersign.dev/p", "sops:e2e-later.db#password")];
    space.create(&space.manifest("patient", &asks)).await?;
    space.event("patient", &["FailedMount", "e2e-later.db"]).await?;
    world.store().await?.write("e2e-later.db", &json!({"password": "at last"})).await?;
    space.running("patient").await?;
    ensure!(space.file("patient", "p").await? == "at last");
    space.remove().await
}

async fn refused(world: Arc<World>) -> Result<()> {
    let space = world.space("refused").await?;
    for (pod, annotations, words) in [
        ("typo", [INJECT, ("secrets.countersign.dev/p", "sops:a#b")], "secrets.countersign.dev/p"),
        ("setting", [INJECT, ("countersign.dev/refersh", "30s")], "countersign.dev/refersh"),
    ] {
        refuses(&world, &space.manifest(pod, &annotations), &space, words).await?;
    }
    let mut writable = space.manifest("writable", &[]);
    let mut volume = inline(&json!({"secret.countersign.dev/p": "sops:a#b"}));
    volume["csi"]["readOnly"] = json!(false);
    writable["spec"]["volumes"] = json!([volume]);
    writable["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "secrets", "mountPath": PATH}]);
    refuses(&world, &writable, &space, "readOnly").await?;
    space.remove().await
}

async fn refuses(
    _world: &World,
    manifest: &Value,
    space: &countersign_cluster::pods::Space,
    words: &str,
) -> Result<()> {
    match space.create(manifest).await {
        Ok(_) => bail!("admitted: {manifest}"),
        Err(error) => ensure!(error.to_string().contains(words), "{words:?} is not in: {error}"),
    }
    Ok(())
}

async fn restricted(world: Arc<World>) -> Result<()> {
    let space = world.space("restricted").await?;
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(space.client().clone());
    let label = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let merge = kube::api::Patch::Merge(label);
    namespaces.patch(space.name(), &kube::api::PatchParams::default(), &merge).await?;
    let mut manifest =
        space.manifest("strict", &[INJECT, ("jwt.countersign.dev/token", "https://api.example.com")]);
    manifest["spec"]["securityContext"] =
        json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}});
    manifest["spec"]["containers"][0]["securityContext"] =
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    space.start_from(&manifest).await?;
    ensure!(space.file("strict", "token").await?.split('.').count() == 3);
    space.remove().await
}
