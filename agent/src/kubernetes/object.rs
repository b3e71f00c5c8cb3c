//! Objects by name, and the little of their contents that is read here.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Kinds of objects that are asked for, with the path of their API group and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    /// `ConfigMap`s of a namespace.
    ConfigMaps,
    /// Nodes.
    Nodes,
    /// Pods of a namespace.
    Pods,
    /// What CSI drivers kubelet has registered on a node.
    CsiNodes,
    /// Configurations of mutating webhooks.
    MutatingWebhookConfigurations,
}

/// One object by kind and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    resource: Resource,
    namespace: Option<String>,
    name: String,
}

impl ObjectName {
    /// An object of the cluster. Nothing unless `name` can be one (RFC 1123, as Kubernetes has it).
    pub(crate) fn cluster(resource: Resource, name: &str) -> Option<Self> {
        legal(name).then(|| Self { resource, namespace: None, name: name.to_owned() })
    }

    /// An object of a namespace, from `NAMESPACE/NAME`. Nothing unless both can be names.
    pub(crate) fn namespaced(resource: Resource, text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        let fit = legal(namespace) && legal(name);
        fit.then(|| Self { resource, namespace: Some(namespace.to_owned()), name: name.to_owned() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The path of its collection.
    pub(crate) fn collection(&self) -> String {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        match self.resource {
            Resource::ConfigMaps => format!("/api/v1/namespaces/{namespace}/configmaps"),
            Resource::Nodes => "/api/v1/nodes".to_owned(),
            Resource::Pods => format!("/api/v1/namespaces/{namespace}/pods"),
            Resource::CsiNodes => "/apis/storage.k8s.io/v1/csinodes".to_owned(),
            Resource::MutatingWebhookConfigurations => {
                "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations".to_owned()
            }
        }
    }

    /// Its own path.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }

    /// The list that has only this object in it: a right that names the object allows it.
    pub(crate) fn alone(&self) -> String {
        format!("{}?fieldSelector=metadata.name%3D{}", self.collection(), self.name)
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.resource {
            Resource::ConfigMaps => "ConfigMap",
            Resource::Nodes => "Node",
            Resource::Pods => "Pod",
            Resource::CsiNodes => "CSINode",
            Resource::MutatingWebhookConfigurations => "MutatingWebhookConfiguration",
        };
        match &self.namespace {
            Some(namespace) => write!(f, "{kind} {namespace}/{}", self.name),
            None => write!(f, "{kind} {}", self.name),
        }
    }
}

/// Names go into paths as they are.
fn legal(name: &str) -> bool {
    let fit = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(fit)
        && name.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
}

/// An object's metadata, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Meta {
    /// Changes with every change of the object; opaque.
    #[serde(default)]
    pub(crate) resource_version: String,
}

/// A `ConfigMap` (core/v1).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct ConfigMap {
    #[serde(default)]
    pub(crate) metadata: Meta,
    #[serde(default)]
    pub(crate) data: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let map =
            ObjectName::namespaced(Resource::ConfigMaps, "countersign-system/countersign-bundle").unwrap();
        assert_eq!(map.path(), "/api/v1/namespaces/countersign-system/configmaps/countersign-bundle");
        assert_eq!(
            map.alone(),
            "/api/v1/namespaces/countersign-system/configmaps?fieldSelector=metadata.name%3Dcountersign-bundle"
        );
        assert_eq!(map.to_string(), "ConfigMap countersign-system/countersign-bundle");
        let node = ObjectName::cluster(Resource::CsiNodes, "ip-10-0-0-1.ec2.internal").unwrap();
        assert_eq!(node.path(), "/apis/storage.k8s.io/v1/csinodes/ip-10-0-0-1.ec2.internal");
    }

    #[test]
    fn what_is_no_name_never_gets_into_a_path() {
        for bad in ["", "a/b", "..", "a..b", "A", "a b", "a?b", "a%2fb", "-a", "a-", "a#", &"a".repeat(254)] {
            assert_eq!(ObjectName::cluster(Resource::Nodes, bad), None, "{bad}");
            assert_eq!(ObjectName::namespaced(Resource::ConfigMaps, &format!("ns/{bad}")), None, "{bad}");
        }
        assert_eq!(ObjectName::namespaced(Resource::ConfigMaps, "bundle"), None);
    }
}
