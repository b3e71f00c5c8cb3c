//! How long a new pod's first SVID takes where the embedded issuer signs it, on the same node.

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use countersign_agent::clock::Clock;
use countersign_agent::identity::choice::{SourceArgs, choose};
use countersign_agent::identity::{Token, Workload};
use countersign_agent::kubernetes::ApiArgs;
use countersign_agent::secret::Secret;
use countersign_cluster::layout::API_ADDRESS;
use countersign_cluster::pods::{LIMIT, name, uid, until};
use countersign_cluster::secrets::SYSTEM;
use countersign_tests::bench::report::Row;
use serde_json::json;

use super::Effort;
use super::asking::{Following, rows};
use crate::spire::TRUST_DOMAIN;
use crate::world::World;

/// The chart's.
const AUDIENCE: &str = "countersign";
/// The chart's, in the issuer's pods.
const PORT: u16 = 8443;

/// The agent's own flags for where identities come from.
#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    api: ApiArgs,
}

/// Installs the release with the issuer, and asks it as the node's agent; the release is as it was after that.
pub(super) async fn measure(world: &Arc<World>, pods: &[Workload], effort: Effort) -> Result<Vec<Row>> {
    let mut values = world.values.clone();
    values["identity"] = json!({"source": "embedded"});
    values["issuer"] = json!({"replicas": 1});
    // What SPIRE's stores want of a pod's SVIDs, the issuer's do not have.
    values["stores"] = json!({});
    world.helm.install(&values).await.context("the embedded issuer")?;
    let outcome = ask(world, pods, effort).await;
    world.helm.install(&world.values).await.context("back to SPIRE")?;
    world.settled().await?;
    outcome
}

async fn ask(world: &World, pods: &[Workload], effort: Effort) -> Result<Vec<Row>> {
    world.settled().await?;
    let system = world.system().await?;
    let issuer = until(LIMIT, "an issuer", async || {
        Ok(system.ready("app.kubernetes.io/component=issuer").await?.pop())
    })
    .await?;
    let address = issuer.status.and_then(|status| status.pod_ip).context("its address")?;
    let agent = system.ready("app.kubernetes.io/component=node").await?.pop().context("the node's pod")?;
    let [token, admin] = ["bench-agent-token", "bench-token"].map(|file| world.directory.join(file));
    std::fs::write(&token, bound(world, SYSTEM, "countersign-agent", name(&agent)?, uid(&agent)?)?)?;
    std::fs::write(&admin, "admin-token")?;
    let flags = Flags::try_parse_from([
        "bench",
        "--identity-source=embedded",
        &format!("--issuer-address={address}:{PORT}"),
        &format!("--bundle-configmap={SYSTEM}/countersign-bundle"),
        &format!("--agent-token={}", token.display()),
        &format!("--kubernetes-url=https://{API_ADDRESS}"),
        &format!("--kubernetes-ca={}", world.cluster.files().pki("ca.crt").display()),
        &format!("--kubernetes-token={}", admin.display()),
    ])?;
    let source = choose(flags.source, &flags.api, "node-1", TRUST_DOMAIN.parse()?, Clock::system())?;
    let following = Following::of(source)?;
    // As kubelet hands them over: no pod waits for its token.
    let asked = pods.iter().take(effort.alone + 1).map(|pod| {
        let token = bound(world, &pod.namespace, &pod.service_account, &pod.pod_name, &pod.pod_uid)?;
        Ok((pod, [Token { audience: AUDIENCE.to_owned(), token: Secret::from(token) }]))
    });
    let asked = asked.collect::<Result<Vec<_>>>()?;
    // The connection is made by whoever comes first.
    let ((pod, tokens), others) = asked.split_first().context("a pod")?;
    until(LIMIT, "served by the issuer", async || Ok(following.first_by(pod, tokens).await.ok())).await?;
    let mut times = Vec::new();
    for (pod, tokens) in others {
        times.push(following.first_by(pod, tokens).await?.0);
    }
    following.end().await;
    rows("first SVID of a new pod, by the embedded issuer", times, "a token review and a new key included")
}

/// A token of a service account's that ends with a pod.
fn bound(world: &World, namespace: &str, account: &str, pod: &str, uid: &str) -> Result<String> {
    let token = world.cluster.kubectl(&[
        "create",
        "token",
        account,
        &format!("--namespace={namespace}"),
        &format!("--audience={AUDIENCE}"),
        "--bound-object-kind=Pod",
        &format!("--bound-object-name={pod}"),
        &format!("--bound-object-uid={uid}"),
    ])?;
    Ok(token.trim().to_owned())
}
