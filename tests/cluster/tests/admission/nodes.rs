//! What an agent may do to nodes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_cluster::admission::post::{Answer, create, patch};
use countersign_cluster::admission::table::{self, Node};
use kube::Client;
use serde_json::json;

use crate::Outcomes;
use crate::server::Server;

const TAINT: &str = "countersign.dev/agent-not-ready";

/// The table of nodes, tried with the token of an agent's pod.
pub(crate) async fn cases(server: &Server, outcomes: &mut Outcomes) -> Result<()> {
    let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
    for (name, taints) in [
        ("node-a", json!([taint("first"), taint(TAINT), taint("last")])),
        ("node-b", json!([taint("first"), taint(TAINT), taint("last")])),
        ("node-c", json!([taint(TAINT)])),
    ] {
        let metadata = json!({"name": name, "labels": {"kept": "a"}, "annotations": {"kept": "a"}});
        let node = json!({"metadata": metadata, "spec": {"taints": taints}});
        create(server.client(), "/api/v1/nodes", &node).await?.object()?;
    }
    let agent = server.pod_client("countersign-agent", "node-a").await?;
    for case in table::read::<Node>("nodes.yaml")? {
        let outcome = judge(&agent, &case).await;
        outcomes.push((format!("node: {}", case.name), outcome));
    }
    let alone = server.pod_client("countersign-agent", "node-c").await?;
    let last = json!([{"op": "remove", "path": "/spec/taints/0"}]);
    let outcome = patch(&alone, "/api/v1/nodes/node-c", &last).await.and_then(Answer::object);
    outcomes.push(("node: takes the startup taint where it is the only one".to_owned(), outcome.map(drop)));
    let outcome = agent_itself(server).await;
    outcomes.push(("node: the agent's own process takes the startup taint away".to_owned(), outcome));
    let issuer = server.pod_client("countersign-issuer", "node-b").await?;
    let outcome = patch(&issuer, "/api/v1/nodes/node-b?dryRun=All", &last).await.and_then(Answer::refusal);
    outcomes.push(("node: the issuer may do nothing to nodes".to_owned(), outcome.map(drop)));
    Ok(())
}

/// The agent with the rights that the chart gives it, under the policy: not before kubelet has registered the driver.
async fn agent_itself(server: &Server) -> Result<()> {
    let mut agent = server.start_agent("node-b", TAINT).await?;
    let keys = async || -> Result<Vec<String>> {
        let node = server.get("/api/v1/nodes/node-b").await?;
        let taints = node["spec"]["taints"].as_array().context("taints")?;
        Ok(taints.iter().filter_map(|taint| taint["key"].as_str().map(str::to_owned)).collect())
    };
    let before = keys().await?;
    ensure!(before.iter().any(|key| key == TAINT), "it went before the driver was registered");
    let drivers = json!([{"name": "csi.countersign.dev", "nodeID": "node-b"}]);
    let registered = json!({"metadata": {"name": "node-b"}, "spec": {"drivers": drivers}});
    create(server.client(), "/apis/storage.k8s.io/v1/csinodes", &registered).await?.object()?;
    let (ours, others): (Vec<_>, Vec<_>) = before.into_iter().partition(|key| key == TAINT);
    let gone = async || {
        keys().await.is_ok_and(|now| {
            others.iter().all(|key| now.contains(key)) && !ours.iter().any(|key| now.contains(key))
        })
    };
    agent.wait_until(Duration::from_secs(30), "without the taint", gone).await
}

async fn judge(agent: &Client, case: &Node) -> Result<()> {
    let subresource = case.subresource.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
    let path = format!("/api/v1/nodes/{}{subresource}?dryRun=All", case.node);
    let answer = patch(agent, &path, &case.patch).await?;
    match &case.refused {
        None => answer.object().map(drop),
        Some(expected) => {
            let refusal = answer.refusal()?;
            ensure!(refusal.contains(expected), "{refusal}");
            Ok(())
        }
    }
}
