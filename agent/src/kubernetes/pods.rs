//! Pods of this node, read from the API server: what kubelet does not say of them with a publish.
//!
//! It costs the right to `get` pods, of every namespace: RBAC has no word for "of one's own node". Nothing is listed or
//! watched; one pod is read by its name when it matters.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use crate::identity::Workload;
use crate::kubernetes::{Api, ApiError, ObjectName, Resource};

/// A pod (core/v1), as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) metadata: Metadata,
    pub(crate) spec: Spec,
    pub(crate) status: Status,
}

/// Its metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) owner_references: Vec<Owner>,
    pub(crate) deletion_timestamp: Option<String>,
}

/// What it belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Owner {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// What it is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Spec {
    pub(crate) service_account_name: String,
    pub(crate) node_name: String,
    pub(crate) host_network: bool,
}

/// What kubelet says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status {
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: Option<IpAddr>,
    pub(crate) container_statuses: Vec<Container>,
    pub(crate) init_container_statuses: Vec<Container>,
}

/// A container that kubelet has begun with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Container {
    pub(crate) image: String,
    #[serde(rename = "imageID")]
    pub(crate) image_id: String,
}

/// Why a pod was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PodError {
    /// The API server's word, or none.
    #[error("{}", .0)]
    Api(#[from] ApiError),
    /// The right is missing.
    #[error("{error}; this agent's service account needs the right to get pods")]
    Forbidden {
        /// The API server's word.
        error: ApiError,
    },
    /// There is no such pod, or none any more.
    #[error("the API server has no pod {pod}")]
    Gone {
        /// Namespace and name.
        pod: String,
    },
    /// Another pod has its name.
    #[error("pod {pod} has uid {found:?} now, and kubelet named {wanted:?}")]
    Another {
        /// Namespace and name.
        pod: String,
        /// The uid it has.
        found: String,
        /// The uid kubelet named.
        wanted: String,
    },
    /// It is not what kubelet says it is.
    #[error(
        "pod {pod} is of {what} {found:?} according to the API server, and of {wanted:?} according to kubelet"
    )]
    Elsewhere {
        /// Namespace and name.
        pod: String,
        /// The field.
        what: &'static str,
        /// The API server's word.
        found: String,
        /// Kubelet's.
        wanted: String,
    },
}

/// Reads pods of one node.
#[derive(Debug, Clone)]
pub(crate) struct Pods {
    api: Arc<Api>,
    node: String,
}

impl Pods {
    /// Pods of the node with this name.
    pub(crate) fn new(api: Arc<Api>, node: String) -> Self {
        Self { api, node }
    }

    /// The pod that kubelet named: this very one, on this node, with this service account.
    pub(crate) async fn read(&self, workload: &Workload) -> Result<Pod, PodError> {
        let name = workload.to_string();
        let gone = || PodError::Gone { pod: name.clone() };
        // What can't be a name is none, and never gets into a path.
        let object = ObjectName::namespaced(Resource::Pods, &name).ok_or_else(gone)?;
        let pod: Pod = match self.api.get(&object.path()).await {
            Ok(pod) => pod,
            Err(error) if error.is_missing() => return Err(gone()),
            Err(error) if error.is_forbidden() => return Err(PodError::Forbidden { error }),
            Err(error) => return Err(error.into()),
        };
        if pod.metadata.uid != workload.pod_uid {
            let (found, wanted) = (pod.metadata.uid, workload.pod_uid.clone());
            return Err(PodError::Another { pod: name, found, wanted });
        }
        for (what, found, wanted) in [
            ("node", &pod.spec.node_name, &self.node),
            ("service account", &pod.spec.service_account_name, &workload.service_account),
        ] {
            if found != wanted {
                let (found, wanted) = (found.clone(), wanted.clone());
                return Err(PodError::Elsewhere { pod: name, what, found, wanted });
            }
        }
        Ok(pod)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::issuer::tests::cluster::{Cluster, clock, workload};
    use crate::kubernetes::testing::ApiServer;

    const PATH: &str = "/api/v1/namespaces/pay/pods/api-0";

    fn object() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "api-0", "namespace": "pay", "uid": "uid-api", "labels": {"app": "api"}},
            "spec": {"serviceAccountName": "api", "nodeName": "node-1", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": "10.1.2.3"},
        })
    }

    async fn read(change: impl FnOnce(&mut Value)) -> Result<Pod, String> {
        let (cluster, server) = (Cluster::new(), ApiServer::start().await);
        let mut object = object();
        change(&mut object);
        server.put(PATH, object);
        let pods = Pods::new(server.api(cluster.dir.path(), clock()), "node-1".to_owned());
        pods.read(&workload("api")).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn the_very_pod_that_kubelet_named() {
        let pod = read(|_| {}).await.unwrap();
        assert_eq!(pod.metadata.labels, BTreeMap::from([("app".to_owned(), "api".to_owned())]));
        assert_eq!(pod.status.pod_ip, Some("10.1.2.3".parse().unwrap()));
        assert!(!pod.spec.host_network && pod.status.container_statuses.is_empty());
        for (pointer, part) in [
            ("/metadata/uid", r#"has uid "other" now, and kubelet named "uid-api""#),
            ("/spec/nodeName", r#"is of node "other" according to the API server, and of "node-1""#),
            ("/spec/serviceAccountName", r#"is of service account "other" according"#),
        ] {
            let problem = read(|pod| *pod.pointer_mut(pointer).unwrap() = "other".into()).await.unwrap_err();
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[tokio::test]
    async fn what_is_missing_is_said() {
        let (cluster, server) = (Cluster::new(), ApiServer::start().await);
        let pods = Pods::new(server.api(cluster.dir.path(), clock()), "node-1".to_owned());
        let problem = pods.read(&workload("api")).await.unwrap_err();
        assert_eq!(problem, PodError::Gone { pod: "pay/api-0".to_owned() });
        server.will_refuse(403, "pods \"api-0\" is forbidden");
        let problem = pods.read(&workload("api")).await.unwrap_err().to_string();
        assert!(problem.contains("is forbidden") && problem.contains("the right to get pods"), "{problem}");
        // No name of a pod, and nothing that is asked for.
        let asked = server.questions().len();
        let odd = Workload { pod_name: "api-0/../../secrets/x".to_owned(), ..workload("api") };
        assert!(matches!(pods.read(&odd).await, Err(PodError::Gone { .. })));
        assert_eq!(server.questions().len(), asked);
    }
}
