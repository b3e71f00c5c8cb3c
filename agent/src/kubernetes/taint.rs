//! The startup taint: a new node takes no pods of others before kubelet has registered the driver there.
//!
//! It is removed only while this node's `CSINode` lists the driver, and looked for again ever after: a taint that the
//! cloud's controllers add late, or that another component writes back, would keep the node empty for ever. Nothing
//! of this ever stops the agent.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::{Api, ApiError, Look, ObjectName, Patch, Resource, follow};

/// How often the node is looked at while the driver is registered: at first, when taints come and go, and at last.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// Removes one taint from one node.
#[derive(Debug)]
pub struct StartupTaint {
    api: Arc<Api>,
    node: ObjectName,
    csi_node: ObjectName,
    taint: String,
    driver: String,
}

#[derive(Deserialize)]
struct CsiNode {
    spec: CsiNodeSpec,
}

#[derive(Deserialize)]
struct CsiNodeSpec {
    /// Before the first driver there is a `null`.
    #[serde(default)]
    drivers: Option<Vec<Driver>>,
}

#[derive(Deserialize)]
struct Driver {
    name: String,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    spec: NodeSpec,
}

#[derive(Default, Deserialize)]
struct NodeSpec {
    #[serde(default)]
    taints: Vec<Value>,
}

impl StartupTaint {
    /// For `taint` on the node of this name; nothing if that is no name.
    pub(crate) fn new(api: Arc<Api>, node: &str, taint: String, driver: String) -> Option<Self> {
        Some(Self {
            api,
            node: ObjectName::cluster(Resource::Nodes, node)?,
            csi_node: ObjectName::cluster(Resource::CsiNodes, node)?,
            taint,
            driver,
        })
    }

    /// Removes the taint whenever it is there and the driver is registered, until `shutdown`.
    pub async fn run(&self, shutdown: &CancellationToken) {
        let registered = watch::Sender::new(false);
        tokio::join!(
            follow::<CsiNode>(&self.api, &self.csi_node, shutdown, |look| match look {
                Look::Is(node) => {
                    let listed = node.spec.drivers.iter().flatten().any(|driver| driver.name == self.driver);
                    registered.send_if_modified(|known| std::mem::replace(known, listed) != listed);
                }
                Look::Missing => {
                    registered.send_replace(false);
                }
                Look::Failed(error) => tracing::debug!(%error, "can't follow {}", self.csi_node),
            }),
            self.keep(registered.subscribe(), shutdown),
        );
    }

    async fn keep(&self, mut registered: watch::Receiver<bool>, shutdown: &CancellationToken) {
        let mut pause = LOOK.0;
        let mut trouble = None;
        loop {
            let listed = *registered.borrow_and_update();
            if listed {
                match self.remove().await {
                    Ok(0) => pause = (pause * 2).min(LOOK.1),
                    Ok(_) => {
                        tracing::info!(
                            node = self.node.name(),
                            taint = self.taint,
                            "the startup taint is removed"
                        );
                        pause = LOOK.0;
                    }
                    Err(error) => {
                        pause = (pause * 2).min(LOOK.1 / 10).max(error.retry_after().unwrap_or_default());
                        let news = trouble.as_ref() != Some(&error);
                        if news && !error.is_conflict() {
                            tracing::warn!(%error, taint = self.taint, "the startup taint can't be removed; trying again");
                        }
                        trouble = Some(error);
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                // The sender lives as long as this does.
                _ = registered.changed() => pause = LOOK.0,
                () = tokio::time::sleep(pause), if listed => {}
            }
        }
    }

    /// Removes the taint, whatever its effect; says how many there were.
    async fn remove(&self) -> Result<usize, ApiError> {
        let node: Node = self.api.get(&self.node.path()).await?;
        let ours = |taint: &Value| taint.get("key").and_then(Value::as_str) == Some(&self.taint);
        // From the end, so that no removal moves what the next one means. The tests fail the whole patch when
        // somebody has changed the list meanwhile.
        let mut steps = Vec::new();
        for (at, taint) in node.spec.taints.iter().enumerate().rev().filter(|(_, taint)| ours(taint)) {
            let path = format!("/spec/taints/{at}");
            steps.push(json!({ "op": "test", "path": path, "value": taint }));
            steps.push(json!({ "op": "remove", "path": path }));
        }
        if !steps.is_empty() {
            self.api.patch::<Value>(&self.node.path(), Patch::Json, &steps).await?;
        }
        Ok(steps.len() / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::tests::cluster::{Cluster, clock, pass};
    use crate::kubernetes::testing::ApiServer;

    const NODE: &str = "/api/v1/nodes/n1";
    const CSI_NODE: &str = "/apis/storage.k8s.io/v1/csinodes/n1";
    const TAINT: &str = "countersign.dev/agent-not-ready";

    fn node(taints: &[&str]) -> Value {
        let taints: Vec<_> = taints
            .iter()
            .enumerate()
            .map(|(at, key)| json!({"key": key, "effect": if at % 2 == 0 { "NoExecute" } else { "NoSchedule" }}))
            .collect();
        json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.0.0.0/24", "taints": taints}})
    }

    /// As kubelet writes it.
    fn csi_node(drivers: &[&str]) -> Value {
        let listed: Vec<_> = drivers.iter().map(|name| json!({"name": name, "nodeID": "n1"})).collect();
        let drivers = if listed.is_empty() { Value::Null } else { json!(listed) };
        json!({"metadata": {"name": "n1"}, "spec": {"drivers": drivers}})
    }

    fn keys(node: Option<&Value>) -> Vec<String> {
        let taints = node.and_then(|node| node["spec"]["taints"].as_array()).cloned().unwrap_or_default();
        taints.iter().map(|taint| taint["key"].as_str().unwrap().to_owned()).collect()
    }

    fn start(server: &ApiServer, cluster: &Cluster) -> (CancellationToken, tokio::task::JoinSet<()>) {
        let api = server.api(cluster.dir.path(), clock());
        let taint = StartupTaint::new(api, "n1", TAINT.to_owned(), "csi.countersign.dev".to_owned()).unwrap();
        let shutdown = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        let ends = shutdown.clone();
        tasks.spawn(async move { taint.run(&ends).await });
        (shutdown, tasks)
    }

    #[tokio::test]
    async fn removed_once_the_driver_is_listed_and_again_whenever_it_comes_back() {
        let (cluster, server) = (Cluster::new(), ApiServer::start().await);
        server.put(NODE, node(&["a", TAINT, "b", TAINT]));
        // A node that has no driver yet: looked at once, and watched from there.
        server.put(CSI_NODE, csi_node(&[]));
        let (shutdown, mut tasks) = start(&server, &cluster);
        while server.asked("GET", "/apis/storage.k8s.io/v1/csinodes?fieldSelector=metadata.name%3Dn1&watch=1")
            == 0
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(server.asked("GET", "/apis/storage.k8s.io/v1/csinodes?"), 2, "one list, and its watch");
        assert_eq!(server.asked("GET", NODE), 0, "not listed yet");
        server.put(CSI_NODE, csi_node(&["other.csi.example.com"]));
        // Somebody changes the node between our look and our write.
        server.will(crate::kubernetes::testing::Reply::Answer(200, "{}".to_owned()));
        server.put(CSI_NODE, csi_node(&["other.csi.example.com", "csi.countersign.dev"]));
        server.until(NODE, |node| keys(node) == ["a", "b"]).await;
        let left = server.object(NODE).unwrap();
        assert_eq!(left["spec"]["podCIDR"], "10.0.0.0/24");
        // Added late, by whoever.
        server.put(NODE, node(&[TAINT]));
        pass(LOOK.1).await;
        server.until(NODE, |node| keys(node).is_empty()).await;
        // Without the driver it is left where it is.
        server.put(CSI_NODE, csi_node(&[]));
        server.put(NODE, node(&[TAINT]));
        server.remove(CSI_NODE);
        shutdown.cancel();
        tasks.join_next().await.unwrap().unwrap();
        assert_eq!(keys(server.object(NODE).as_ref()), [TAINT]);
    }

    #[tokio::test]
    async fn a_node_that_changed_meanwhile_and_a_refusal_are_tried_again() {
        let (cluster, server) = (Cluster::new(), ApiServer::start().await);
        server.put(NODE, node(&["a", TAINT]));
        let api = server.api(cluster.dir.path(), clock());
        let taint = StartupTaint::new(api, "n1", TAINT.to_owned(), "csi.countersign.dev".to_owned()).unwrap();
        server.will_answer(200, &node(&[TAINT, "a"]));
        assert!(taint.remove().await.is_err(), "the list is not as it was read");
        assert_eq!(keys(server.object(NODE).as_ref()), ["a", TAINT]);
        assert_eq!(taint.remove().await.unwrap(), 1);
        assert_eq!(taint.remove().await.unwrap(), 0);
        assert!(
            StartupTaint::new(
                server.api(cluster.dir.path(), clock()),
                "N/1",
                TAINT.to_owned(),
                String::new()
            )
            .is_none()
        );
    }
}
