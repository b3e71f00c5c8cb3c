//! Parts that end and come back under pods that run.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_cluster::node;
use countersign_cluster::pods::{LIMIT, Space, is_ready, name, uid, until};
use countersign_cluster::world::{Case, Kind, World, case};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::change::restarts;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("driver_and_agent_deleted_under_a_running_pod", Kind::Alone, pod_deleted).on_older(),
        case("agent_killed_under_a_running_pod", Kind::Node, agent_killed),
        case("driver_killed_under_a_running_pod", Kind::Node, driver_killed),
        case("driver_that_hangs_is_restarted_under_a_running_pod", Kind::Node, driver_hangs),
        case("kubelet_restarted_under_a_running_pod", Kind::Node, kubelet_restarted),
        case("issuer_rolled_and_scaled_while_pods_start", Kind::Alone, issuer),
        case("node_rebooted", Kind::Node, rebooted),
    ]
}

const ASKS: [(&str, &str); 3] = [
    ("secret.countersign.dev/p", "sops:e2e-restart.db#password"),
    ("jwt.countersign.dev/token", "https://api.example.com"),
    ("countersign.dev/refresh", "1s"),
];
pub(crate) const NODE_LABEL: &str = "app.kubernetes.io/component=node";

/// A pod that runs through something: its file is there all the while, and follows its secret afterwards.
struct Survivor {
    space: Space,
    world: Arc<World>,
    key: String,
}

impl Survivor {
    async fn new(world: &Arc<World>, case: &str) -> Result<Self> {
        let space = world.space(case).await?;
        let key = format!("e2e-{case}.live");
        world.store().await?.write(&key, &json!({"password": "before"})).await?;
        let reference = format!("sops:{key}#password");
        let mut asks = ASKS.to_vec();
        if let Some(first) = asks.first_mut() {
            first.1 = &reference;
        }
        space.start("survivor", &asks).await?;
        Ok(Self { space, world: Arc::clone(world), key })
    }

    /// Its files are there. A kubelet that has just started does not know its pods yet, and is asked again.
    async fn has_files(&self) -> Result<()> {
        let known = async || Ok(self.space.exec("survivor", &["true"]).await.ok());
        until(LIMIT, "a kubelet that knows its pods", known).await?;
        ensure!(self.space.file("survivor", "p").await? == "before");
        ensure!(self.space.file("survivor", "token").await?.split('.').count() == 3);
        Ok(())
    }

    /// It still runs, its files follow, and another pod can start.
    async fn survived(self) -> Result<()> {
        self.has_files().await?;
        self.world.store().await?.write(&self.key, &json!({"password": "after"})).await?;
        self.space.file_becomes("survivor", "p", "after").await?;
        ensure!(restarts(&self.space, "survivor").await? == 0);
        let reference = format!("sops:{}#password", self.key);
        self.space.start("newcomer", &[("secret.countersign.dev/p", &reference)]).await?;
        ensure!(self.space.file("newcomer", "p").await? == "after");
        for pod in ["survivor", "newcomer"] {
            self.space.delete(pod).await?;
        }
        self.space.remove().await
    }
}

/// Waits until the pod of driver and agent is another one than `old`, and ready.
async fn node_pod_after(system: &Space, old: &str) -> Result<()> {
    until(LIMIT, "another pod of driver and agent", async || {
        let pods = system.ready(NODE_LABEL).await?;
        Ok(pods.iter().any(|pod| uid(pod).is_ok_and(|uid| uid != old)).then_some(()))
    })
    .await
}

async fn pod_deleted(world: Arc<World>) -> Result<()> {
    let survivor = Survivor::new(&world, "deleted").await?;
    let system = world.system().await?;
    for pod in system.ready(NODE_LABEL).await? {
        system.api::<Pod>().delete(name(&pod)?, &DeleteParams::default()).await?;
        survivor.has_files().await?;
        node_pod_after(&system, uid(&pod)?).await?;
    }
    survivor.survived().await
}

async fn agent_killed(world: Arc<World>) -> Result<()> {
    let survivor = Survivor::new(&world, "agent").await?;
    let old = node::settled(node::agent).await?;
    node::signal(old, Signal::KILL)?;
    survivor.has_files().await?;
    node::replaced(old, node::agent).await?;
    survivor.survived().await
}

async fn driver_killed(world: Arc<World>) -> Result<()> {
    let survivor = Survivor::new(&world, "driver").await?;
    let old = node::settled(node::driver).await?;
    node::signal(old, Signal::KILL)?;
    survivor.has_files().await?;
    node::replaced(old, node::driver).await?;
    survivor.survived().await
}

/// The same probe as the chart's, only sooner.
async fn driver_hangs(world: Arc<World>) -> Result<()> {
    let system = world.system().await?;
    let sets = system.api::<DaemonSet>();
    let usual = sets.get("countersign-node").await?;
    let containers = usual.spec.template.spec.context("a template")?.containers;
    let driver = containers.iter().find(|container| container.name == "driver").context("a driver")?;
    let mut usual = serde_json::to_value(driver.liveness_probe.as_ref().context("a probe")?)?;
    let mut sooner = usual.clone();
    for (field, value) in
        [("periodSeconds", 1), ("failureThreshold", 2), ("terminationGracePeriodSeconds", 1)]
    {
        sooner[field] = json!(value);
    }
    usual["terminationGracePeriodSeconds"] = Value::Null;
    probe(&system, &sooner).await?;
    let outcome = hung(&world, &system).await;
    probe(&system, &usual).await?;
    outcome
}

/// Changes the driver's liveness probe, and waits until the pods have it.
async fn probe(system: &Space, probe: &Value) -> Result<()> {
    let ready = async || Ok(system.ready(NODE_LABEL).await?.into_iter().next());
    let old = until(LIMIT, "a pod of driver and agent", ready).await?;
    let containers = json!([{"name": "driver", "livenessProbe": probe}]);
    let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let sets = system.api::<DaemonSet>();
    sets.patch("countersign-node", &PatchParams::default(), &Patch::Strategic(patch)).await?;
    node_pod_after(system, uid(&old)?).await
}

async fn hung(world: &Arc<World>, system: &Space) -> Result<()> {
    let survivor = Survivor::new(world, "hung").await?;
    let old = node::settled(node::driver).await?;
    node::signal(old, Signal::STOP)?;
    survivor.has_files().await?;
    node::replaced(old, node::driver).await?;
    let pods = system.api::<Pod>().list(&ListParams::default().labels(NODE_LABEL)).await?;
    let pod = pods.items.first().context("a pod of driver and agent")?;
    system.event(name(pod)?, &["Unhealthy", "the driver did not answer within 3 s"]).await?;
    survivor.survived().await
}

async fn kubelet_restarted(world: Arc<World>) -> Result<()> {
    let survivor = Survivor::new(&world, "kubelet").await?;
    world.node()?.restart_kubelet().await?;
    survivor.survived().await
}

async fn issuer(world: Arc<World>) -> Result<()> {
    let deployments = world.system().await?.api::<Deployment>();
    let outcome = issuer_changes(&world, &deployments).await;
    // As the chart has it, however it went: helm would not overrule us in later cases.
    let patch = Patch::Strategic(replicas(2));
    deployments.patch("countersign-issuer", &PatchParams::default(), &patch).await?;
    outcome
}

fn replicas(number: i32) -> Value {
    json!({"spec": {"replicas": number}})
}

async fn issuer_changes(world: &World, deployments: &Api<Deployment>) -> Result<()> {
    let space = world.space("issuer").await?;
    let patch = PatchParams::default();
    let mut started = 0;
    let roll = json!({"spec": {"template": {"metadata": {"annotations": {"e2e.test/rolled": "1"}}}}});
    for change in [replicas(1), replicas(3), replicas(1), roll, replicas(2)] {
        deployments.patch("countersign-issuer", &patch, &Patch::Strategic(change)).await?;
        // While it happens and once it has.
        loop {
            started += 1;
            let pod = format!("pod-{started}");
            space.start(&pod, &ASKS[1..2]).await?;
            let failed: Vec<_> =
                space.events(&pod).await?.into_iter().filter(|event| event.contains("FailedMount")).collect();
            ensure!(failed.is_empty(), "{pod} while the issuer changed: {failed:#?}");
            space.api::<Pod>().delete(&pod, &DeleteParams::default()).await?;
            if rolled_out(&deployments.get("countersign-issuer").await?)? {
                break;
            }
        }
    }
    space.remove().await
}

/// Whether nothing of a deployment is on its way.
pub(crate) fn rolled_out(deployment: &Deployment) -> Result<bool> {
    let spec = &deployment.spec;
    let status = deployment.status.as_ref().context("a status")?;
    let wanted = spec.replicas;
    Ok(status.observed_generation == deployment.metadata.generation
        && status.replicas == wanted
        && status.updated_replicas == wanted
        && status.available_replicas == wanted)
}

async fn rebooted(world: Arc<World>) -> Result<()> {
    let space = world.space("reboot").await?;
    let stays = space.start("stays", &[("secret.countersign.dev/p", "sops:e2e-reboot.db#password")]).await?;
    let goes = space.start("goes", &[("secret.countersign.dev/p", "sops:e2e-reboot.db#password")]).await?;
    let cluster = world.node()?;
    cluster.stop_kubelet().await?;
    // One is deleted while the machine is down.
    space.api::<Pod>().delete("goes", &DeleteParams::default()).await?;
    cluster.reboot().await?;
    let pods = space.api::<Pod>();
    until(Duration::from_secs(180), "running again", async || {
        let pod = pods.get("stays").await?;
        let again =
            pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first().cloned());
        Ok((is_ready(&pod) && again.is_some_and(|container| container.restart_count == 1)).then_some(()))
    })
    .await?;
    ensure!(space.file("stays", "p").await? == "for-reboot");
    ensure!(node::volumes(uid(&stays)?)?.len() == 1);
    space.gone("goes").await?;
    let gone = async || Ok((!node::directory(uid(&goes)?).exists()).then_some(()));
    until(LIMIT, "removed", gone).await?;
    // The release itself is whole again.
    let system = world.system().await?;
    until(LIMIT, "a release that is ready", async || {
        let all = system.api::<Pod>().list(&ListParams::default()).await?;
        Ok(all.iter().all(is_ready).then_some(()))
    })
    .await?;
    space.delete("stays").await?;
    space.remove().await
}
