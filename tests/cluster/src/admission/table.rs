//! The tables in `tests/cluster/admission`.

#![expect(clippy::indexing_slicing, reason = "a JSON value answers null for what is not there")]

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use countersign_tests::processes::workspace;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A pod as its author writes it.
#[derive(Debug, Clone, Deserialize)]
pub struct Pod {
    /// What is special about it.
    pub name: String,
    /// Where it is made; `app` otherwise.
    #[serde(default = "app")]
    pub namespace: String,
    /// Its annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Its specification.
    pub spec: Value,
}

/// A pod that is let in.
#[derive(Debug, Clone, Deserialize)]
pub struct Given {
    /// The pod.
    #[serde(flatten)]
    pub pod: Pod,
    /// What the volume asks for; no volume otherwise.
    pub volume: Option<Attributes>,
    /// Where each container has it.
    #[serde(default)]
    pub mounts: BTreeMap<String, String>,
    /// A warning the user is shown; none of ours otherwise.
    pub warned: Option<String>,
}

/// What a volume asks for.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Attributes {
    /// Exactly this.
    These(BTreeMap<String, String>),
    /// All annotations of the pod.
    All(All),
}

/// The one word that stands for them.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum All {
    /// `annotations`
    Annotations,
}

/// A pod that is not let in.
#[derive(Debug, Clone, Deserialize)]
pub struct Refused {
    /// The pod.
    #[serde(flatten)]
    pub pod: Pod,
    /// Part of what the user reads.
    pub refused: String,
    /// What the user must not read.
    pub not: Option<String>,
    /// A template of it is fine.
    #[serde(default, rename = "pods only")]
    pub pods_only: bool,
}

/// What an agent tries to do to a node.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    /// What it is.
    pub name: String,
    /// The node.
    pub node: String,
    /// A part of it that has a path of its own.
    pub subresource: Option<String>,
    /// A JSON patch.
    pub patch: Value,
    /// Part of the refusal; let in otherwise.
    pub refused: Option<String>,
}

#[derive(Deserialize)]
struct Table<Case> {
    cases: Vec<Case>,
}

/// The cases of one table.
pub fn read<Case: DeserializeOwned>(name: &str) -> Result<Vec<Case>> {
    let path = workspace().join("tests/cluster/admission").join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let table: Table<Case> = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(table.cases)
}

fn app() -> String {
    "app".to_owned()
}

impl Given {
    /// What the volume asks for.
    pub fn attributes(&self) -> Option<&BTreeMap<String, String>> {
        self.volume.as_ref().map(|volume| match volume {
            Attributes::These(these) => these,
            Attributes::All(All::Annotations) => &self.pod.annotations,
        })
    }
}

impl Pod {
    fn template(&self) -> Value {
        let mut spec = self.spec.clone();
        if let Some(spec) = spec.as_object_mut() {
            // Its volume has a name made up anew each time, and few cases are about it.
            spec.entry("automountServiceAccountToken").or_insert(json!(false));
        }
        json!({"metadata": {"labels": {"app": "x"}, "annotations": self.annotations}, "spec": spec})
    }

    /// The object.
    pub fn object(&self) -> Value {
        let mut pod = self.template();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!("x");
        pod
    }

    /// Everything that makes such pods: group and plural of its kind, and the object.
    pub fn workloads(&self) -> Vec<(&'static str, &'static str, Value)> {
        let template = self.template();
        let mut once = template.clone();
        once["spec"]["restartPolicy"] = json!("Never");
        let selector = json!({"matchLabels": {"app": "x"}});
        let metadata = json!({"name": "x"});
        let apps = |kind: &str| {
            json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata,
                "spec": {"selector": selector, "template": template}})
        };
        let mut stateful = apps("StatefulSet");
        stateful["spec"]["serviceName"] = json!("x");
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": once}});
        let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata,
            "spec": {"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": once}}}});
        vec![
            ("apps/v1", "deployments", apps("Deployment")),
            ("apps/v1", "replicasets", apps("ReplicaSet")),
            ("apps/v1", "daemonsets", apps("DaemonSet")),
            ("apps/v1", "statefulsets", stateful),
            ("batch/v1", "jobs", job),
            ("batch/v1", "cronjobs", cron),
        ]
    }
}
