//! A cluster that is set up wrong: what is said where its user looks first, that nothing is restarted in vain, and that
//! it heals.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::layout::KUBELET_ELSEWHERE;
use countersign_cluster::misplaced::absent;
use countersign_cluster::node;
use countersign_cluster::pods::{LIMIT, Space, name, until};
use countersign_cluster::version::Version;
use countersign_cluster::world::{Case, Kind, World, case};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::api::storage::v1::CSIDriver;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use crate::restart::NODE_LABEL;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("second_driver_on_a_node_stands_by", Kind::Node, second_driver),
        case("kubelet_root_in_the_values_that_is_not_kubelet_s_is_named", Kind::Node, elsewhere),
        case("issuer_without_its_right_says_which", Kind::Alone, right_taken),
        case("without_the_csidriver_object_a_pod_waits", Kind::Alone, object_gone),
        case("trust_bundle_that_has_expired_is_named", Kind::Alone, expired),
        case("every_object_of_a_full_chart_is_valid", Kind::Node, valid),
    ]
}

const ASKS: [(&str, &str); 2] =
    [("countersign.dev/inject", "true"), ("jwt.countersign.dev/token", "https://api.example.com")];

/// How often containers of the release were started again, all together.
pub(crate) async fn restarts(system: &Space) -> Result<i32> {
    let pods = system.api::<Pod>().list(&ListParams::default()).await?;
    let statuses =
        pods.iter().flat_map(|pod| pod.status.iter().flat_map(|status| &status.container_statuses));
    Ok(statuses.flatten().map(|container| container.restart_count).sum())
}

/// Without helm's own check: another namespace, manifests applied as they are.
async fn second_driver(world: Arc<World>) -> Result<()> {
    let space = world.space("second").await?;
    let mut values = world.values().clone();
    values.as_object_mut().context("values")?.remove("sops");
    let templates =
        ["daemonset", "serviceaccount", "config"].map(|part| format!("templates/node/{part}.yaml"));
    let templates: Vec<&str> = templates.iter().map(String::as_str).collect();
    let text = world.helm().render_part(&templates, space.name(), &values).await?;
    apply(&world, &text, space.name(), &[])?;
    let pods = space.api::<Pod>();
    let of = ListParams::default().labels(NODE_LABEL);
    let pod = until(LIMIT, "a second pod of driver and agent", async || {
        let pod = pods.list(&of).await?.items.into_iter().next();
        Ok(pod.filter(|pod| {
            pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
        }))
    })
    .await?;
    let pod = name(&pod)?;
    let says = "another countersign driver serves kubelet from /var/lib/kubelet/plugins/csi.countersign.dev: a node has \
                one driver of this name, remove one of the two installations";
    until(LIMIT, "the reason in its log", async || {
        Ok(space.log(pod, "driver").await?.contains(says).then_some(()))
    })
    .await?;
    // Its liveness probe is content; its readiness probe is not.
    let status = space.exec_in(pod, "driver", &["/countersign-driver", "probe"]).await?;
    ensure!(status.contains(says), "{status}");
    space.event(pod, &["Unhealthy", "Readiness probe failed"]).await?;
    // The first one serves as before.
    space.start_from(&space.manifest("served", &ASKS)).await?;
    space.delete("served").await?;
    ensure!(restarts(&space).await? == 0, "the second was restarted");
    space.api::<DaemonSet>().delete("countersign-node", &DeleteParams::default()).await?;
    let gone = async || Ok((node::processes("countersign-driver")?.len() == 1).then_some(()));
    until(LIMIT, "one driver", gone).await?;
    space.start_from(&space.manifest("after", &ASKS)).await?;
    space.delete("after").await?;
    space.remove().await
}

/// The other way round, and an earlier kubelet's directory, are in the suite `elsewhere`.
async fn elsewhere(world: Arc<World>) -> Result<()> {
    let space = world.space("misplaced").await?;
    absent(&world, &space, KUBELET_ELSEWHERE).await?;
    space.remove().await
}

fn apply(world: &World, text: &str, namespace: &str, more: &[&str]) -> Result<()> {
    let path: PathBuf = world.node()?.files().write(&format!("{namespace}.yaml"), text)?;
    let path = path.display().to_string();
    world.node()?.kubectl(&[&["apply", "--namespace", namespace, "--filename", &path], more].concat())?;
    Ok(())
}

/// The object as it can be made again.
fn anew<K: kube::Resource>(mut object: K) -> K {
    let meta = object.meta_mut();
    meta.resource_version = None;
    meta.uid = None;
    meta.creation_timestamp = None;
    meta.managed_fields = None;
    object
}

async fn right_taken(world: Arc<World>) -> Result<()> {
    let space = world.space("right").await?;
    let system = world.system().await?;
    let bindings = Api::<ClusterRoleBinding>::all(space.client().clone());
    let binding = anew(bindings.get("countersign-issuer").await?);
    let before = restarts(&system).await?;
    bindings.delete("countersign-issuer", &DeleteParams::default()).await?;
    let told = async {
        space.create(&space.manifest("waits", &ASKS)).await?;
        let words = ["FailedMount", "identity", "403 Forbidden", "the right to create tokenreviews"];
        space.event("waits", &words).await
    };
    let told = told.await;
    bindings.create(&PostParams::default(), &binding).await?;
    told?;
    space.running("waits").await?;
    ensure!(restarts(&system).await? == before, "something was restarted in vain");
    space.delete("waits").await?;
    space.remove().await
}

async fn object_gone(world: Arc<World>) -> Result<()> {
    let space = world.space("object").await?;
    let system = world.system().await?;
    let objects = Api::<CSIDriver>::all(space.client().clone());
    let object = anew(objects.get("csi.countersign.dev").await?);
    let before = restarts(&system).await?;
    space.start_from(&space.manifest("runs", &ASKS)).await?;
    objects.delete("csi.countersign.dev", &DeleteParams::default()).await?;
    let told = async {
        space.create(&space.by_hand("waits", &json!({ASKS[1].0: ASKS[1].1}))).await?;
        space.event("waits", &["FailedMount", "csi.countersign.dev", "no CSIDriver object"]).await?;
        ensure!(space.file("runs", "token").await?.split('.').count() == 3);
        Ok(())
    };
    let told = told.await;
    objects.create(&PostParams::default(), &object).await?;
    told?;
    space.running("waits").await?;
    ensure!(restarts(&system).await? == before, "something was restarted in vain");
    space.delete("waits").await?;
    space.delete("runs").await?;
    space.remove().await
}

async fn expired(world: Arc<World>) -> Result<()> {
    let space = world.space("expired").await?;
    let system = world.system().await?;
    let deployments = system.api::<Deployment>();
    let scale = async |number: i32| {
        let patch = json!({"spec": {"replicas": number}});
        deployments.patch("countersign-issuer", &PatchParams::default(), &Patch::Strategic(patch)).await
    };
    scale(0).await?;
    let told = told_of_expiry(&space, &system).await;
    scale(2).await?;
    until(LIMIT, "both replicas, and a node that reaches them", async || {
        let issuers = system.ready("app.kubernetes.io/component=issuer").await?.len();
        Ok((issuers == 2 && !system.ready(NODE_LABEL).await?.is_empty()).then_some(()))
    })
    .await?;
    let event = told?;
    ensure!(event.contains("a running issuer writes its own"), "no remedy in {event}");
    // It heals by itself as soon as there is an issuer, and what has expired is gone.
    space.running("waits").await?;
    let pem = bundle(&system).await?;
    ensure!(pem.contains("BEGIN CERTIFICATE"), "{pem}");
    space.delete("waits").await?;
    space.remove().await
}

async fn told_of_expiry(space: &Space, system: &Space) -> Result<String> {
    let pods = system.api::<Pod>();
    let issuers = ListParams::default().labels("app.kubernetes.io/component=issuer");
    until(LIMIT, "no issuer", async || Ok(pods.list(&issuers).await?.items.is_empty().then_some(()))).await?;
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let old = params.self_signed(&KeyPair::generate()?)?.pem();
    let patch = json!({"data": {"bundle.pem": old}});
    let maps = system.api::<ConfigMap>();
    maps.patch("countersign-bundle", &PatchParams::default(), &Patch::Merge(patch)).await?;
    // Without an issuer there is no webhook either, where it is that which injects.
    space.create(&space.by_hand("waits", &json!({ASKS[1].0: ASKS[1].1}))).await?;
    let words = ["FailedMount", "countersign-bundle", "every certificate in it has expired"];
    space.event("waits", &words).await
}

async fn bundle(system: &Space) -> Result<String> {
    let data = system.api::<ConfigMap>().get("countersign-bundle").await?.data.context("a bundle")?;
    data.get("bundle.pem").cloned().context("bundle.pem")
}

/// The kind that the Prometheus operator brings, as far as the chart uses it.
const SERVICE_MONITOR: &str = "\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: ServiceMonitor, plural: servicemonitors}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [selector, endpoints]
            properties:
              selector:
                type: object
                properties:
                  matchLabels: {type: object, additionalProperties: {type: string}}
              endpoints:
                type: array
                items:
                  type: object
                  properties:
                    port: {type: string}
                    path: {type: string, pattern: '^/'}
                    interval: {type: string, pattern: '^[0-9]+(ms|s|m|h)$'}
";

/// What the release here does without, too: the API server judges it all, and keeps nothing.
async fn valid(world: Arc<World>) -> Result<()> {
    let cluster = world.node()?;
    apply(&world, SERVICE_MONITOR, "default", &[])?;
    let crd = "crd/servicemonitors.monitoring.coreos.com";
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", crd])?;
    let mut values = world.values().clone();
    for (key, value) in [
        ("metrics", json!({"serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}}})),
        ("networkPolicy", json!({"enabled": true})),
        ("events", json!({"enabled": true})),
        ("onChange", json!({"enabled": true})),
        ("signals", json!({"enabled": true})),
        ("startupTaint", json!({"enabled": true})),
        ("namespace", json!({"create": true})),
        ("issuer", json!({"replicas": 3, "podDisruptionBudget": {"enabled": true}})),
    ] {
        values[key] = value;
    }
    let mut kinds = Vec::new();
    for &mode in Version::chosen()?.ways() {
        values["injection"] = json!({"mode": mode});
        let text = world.helm().render(&values).await?;
        kinds.extend(text.lines().filter_map(|line| line.strip_prefix("kind: ")).map(str::to_owned));
        let how = ["--dry-run=server", "--server-side", "--force-conflicts", "--validate=strict"];
        apply(&world, &text, countersign_cluster::secrets::SYSTEM, &how).context(mode)?;
    }
    for kind in ["NetworkPolicy", "ServiceMonitor", "PodDisruptionBudget", "MutatingWebhookConfiguration"] {
        ensure!(kinds.iter().any(|one| one == kind), "no {kind} among {kinds:?}");
    }
    // Looking finds: a schema error is one.
    let wrong = world.helm().render(&values).await?.replace("policyTypes:", "policyType:");
    let how = ["--dry-run=server", "--server-side", "--force-conflicts", "--validate=strict"];
    let refused = apply(&world, &wrong, countersign_cluster::secrets::SYSTEM, &how);
    let refused = refused.err().context("a wrong field is taken")?.to_string();
    ensure!(refused.contains("policyType"), "{refused}");
    cluster.kubectl(&["delete", crd])?;
    Ok(())
}
