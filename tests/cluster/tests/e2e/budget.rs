//! What an operator of the cluster does to the release by other means than helm.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use countersign_cluster::pods::{LIMIT, Space, is_ready, name, until};
use countersign_cluster::world::{Case, Kind, World, case};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::restart::rolled_out;

pub(crate) fn cases() -> Vec<Case> {
    vec![case("issuer_is_evicted_one_replica_at_a_time", Kind::Node, evicted)]
}

const ISSUER: &str = "countersign-issuer";

/// A node that is drained takes one replica, waits for its successor, and is never held up by the only one.
async fn evicted(world: Arc<World>) -> Result<()> {
    let system = world.system().await?;
    let outcome = evictions(&world, &system).await;
    scaled(&system, 2).await?;
    outcome
}

async fn evictions(world: &World, system: &Space) -> Result<()> {
    scaled(system, 3).await?;
    let pods = system.ready("app.kubernetes.io/component=issuer").await?;
    let [first, second, ..] = pods.as_slice() else { bail!("{} replicas are ready", pods.len()) };
    evict(world, system, first)?;
    let refused = evict(world, system, second).err().context("two at a time")?;
    ensure!(format!("{refused:#}").contains("disruption budget"), "{refused:#}");
    scaled(system, 1).await?;
    let pods = system.ready("app.kubernetes.io/component=issuer").await?;
    let only = pods.first().context("a replica")?;
    evict(world, system, only)
}

/// Once: the client of the other cases tries again until it may.
fn evict(world: &World, system: &Space, pod: &Pod) -> Result<()> {
    let (cluster, pod) = (world.node()?, name(pod)?);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
    let file = cluster.files().write("eviction.json", &eviction.to_string())?.display().to_string();
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", system.name());
    cluster.kubectl(&["create", "--raw", &path, "--filename", &file]).map(drop)
}

/// Waits until there are as many replicas, and the budget knows.
async fn scaled(system: &Space, number: i32) -> Result<()> {
    let (deployments, budgets) = (system.api::<Deployment>(), system.api::<PodDisruptionBudget>());
    let patch = json!({"spec": {"replicas": number}});
    deployments.patch(ISSUER, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    until(LIMIT, "that many replicas", async || {
        let budget = budgets.get(ISSUER).await?.status.context("a status")?;
        let known = budget.expected_pods == Some(number) && budget.disruptions_allowed == Some(1);
        let ready = system.ready("app.kubernetes.io/component=issuer").await?;
        let ready = ready.iter().filter(|pod| is_ready(pod)).count();
        Ok((known && ready == usize::try_from(number)? && rolled_out(&deployments.get(ISSUER).await?)?)
            .then_some(()))
    })
    .await
}
