//! Many pods at once, and what kubelet counts.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::audit::Requests;
use countersign_cluster::kubelet::Operations;
use countersign_cluster::pods::{LIMIT, idle, until};
use countersign_cluster::world::{Case, Kind, World, case};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Client;
use kube::api::PostParams;
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![case("hundred_pods_at_once_all_start_without_a_failed_call", Kind::Alone, hundred)]
}

const PODS: usize = 100;

async fn hundred(world: Arc<World>) -> Result<()> {
    let space = world.space("many").await?;
    let client = world.client().await?;
    let before = Operations::read(&client).await?;
    // Where the node is in hand, so is the API server's audit log.
    let audit = world.node().ok().map(|cluster| cluster.files().log("audit"));
    let asked = audit.as_deref().map(Requests::read).transpose()?;
    let deployment = json!({
        "metadata": {"name": "many"},
        "spec": {
            "replicas": PODS,
            "selector": {"matchLabels": {"app": "many"}},
            "template": {
                "metadata": {"labels": {"app": "many"}, "annotations": {
                    "countersign.dev/inject": "true",
                    "secret.countersign.dev/p": "sops:e2e-many.db#password",
                    "jwt.countersign.dev/token": "https://api.example.com",
                }},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [idle(world.image())]},
            },
        },
    });
    let deployments = space.api::<Deployment>();
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
    let pods = until(LIMIT * 2, "a hundred ready pods", async || {
        Ok(Some(space.ready("app=many").await?).filter(|pods| pods.len() == PODS))
    });
    for pod in pods.await?.iter().step_by(17) {
        let pod = pod.metadata.name.as_deref().context("a name")?;
        ensure!(space.file(pod, "p").await? == "for-many");
    }
    if let (Some(audit), Some(asked)) = (&audit, &asked) {
        frugal(&Requests::read(audit)?.since(asked))?;
        rest(&client, audit).await?;
    }
    deployments.delete("many", &kube::api::DeleteParams::foreground()).await?;
    until(LIMIT, "no pod left", async || {
        let left =
            space.api::<k8s_openapi::api::core::v1::Pod>().list(&kube::api::ListParams::default()).await?;
        Ok(left.items.is_empty().then_some(()))
    })
    .await?;
    let since = Operations::read(&client).await?.since(&before);
    ensure!(since.published() >= PODS as u64, "{since:?}");
    ensure!(since.failed().is_empty(), "calls of kubelet's failed: {since:?}");
    space.remove().await
}

/// Kubelet publishes all of them again: that costs the API server nothing of ours. What is left comes with the time and not
/// with the pods: the agent's own token once in ten seconds at each replica, and a watch that is renewed.
async fn rest(client: &Client, audit: &Path) -> Result<()> {
    let (calls, asked) = (Operations::read(client).await?, Requests::read(audit)?);
    until(LIMIT, "all published again", async || {
        Ok((Operations::read(client).await?.since(&calls).published() >= PODS as u64).then_some(()))
    })
    .await?;
    let all = Requests::read(audit)?;
    let since = all.since(&asked);
    ensure!(since.count() <= 20, "{} requests for {PODS} pods at rest: {since}", since.count());
    ensure!(all.nameless().is_empty(), "a client of ours that an operator can't find: {:#?}", all.nameless());
    Ok(())
}

/// Beyond a review for each pod there is next to nothing: the agent's own token every ten seconds at each replica, and a
/// watch that was renewed. The JWT-SVID that each pod has beside its identity costs no review.
fn frugal(requests: &Requests) -> Result<()> {
    let reviews = requests.of_kind("create", "tokenreviews");
    ensure!(reviews <= PODS as u64 + 80, "{reviews} reviews for {PODS} pods: {requests}");
    let rest = requests.count() - reviews;
    ensure!(rest <= 20, "{rest} other requests: {requests}");
    Ok(())
}
