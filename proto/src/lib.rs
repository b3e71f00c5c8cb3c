//! The protocols that Countersign's processes and their peers must agree on.
//!
//! Each module is generated from a `.proto` file of ours under `proto/`. Messages that carry a token print
//! their names only.

#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]

mod redacted;
pub mod signal;

/// Container Storage Interface: Identity and Node.
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// Kubelet's plugin registration, version 1.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// The link between driver and agent.
pub mod agent {
    tonic::include_proto!("countersign.agent.v1");

    /// Bytes of a mailbox key: enough that one can't be guessed.
    pub const MAILBOX_KEY_BYTES: usize = 16;
    /// File name of the gRPC socket in the link directory.
    pub const AGENT_SOCKET: &str = "agent.sock";
    /// File name of the mailbox socket in the link directory.
    pub const MAILBOX_SOCKET: &str = "mailbox.sock";
    /// File name of the driver's status socket in the link directory: who connects reads one JSON line.
    pub const STATUS_SOCKET: &str = "driver-status.sock";
}

/// The embedded issuer.
pub mod issuer {
    tonic::include_proto!("countersign.issuer.v1");
}

/// The SPIFFE Workload API, whose published service has no package.
pub mod workload {
    tonic::include_proto!("_");
}

/// The SPIFFE Broker API.
pub mod broker {
    tonic::include_proto!("spiffe.broker");

    /// How a [`KubernetesObjectReference`] is called in a [`WorkloadReference`].
    pub const KUBERNETES_OBJECT: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";

    /// The pod of this name that has this uid, and no other of the same name.
    pub fn pod_reference(namespace: &str, name: &str, uid: &str) -> WorkloadReference {
        let pod = KubernetesObjectReference {
            r#type: Some(KubernetesObjectType { plural: "pods".to_owned(), group: "core".to_owned() }),
            key: Some(KubernetesObjectKey { namespace: namespace.to_owned(), name: name.to_owned() }),
            uid: uid.to_owned(),
        };
        let value = prost::Message::encode_to_vec(&pod);
        WorkloadReference {
            reference: Some(prost_types::Any { type_url: KUBERNETES_OBJECT.to_owned(), value }),
        }
    }

    /// The object in a reference; none if it is of another type or can't be read.
    pub fn object(reference: &WorkloadReference) -> Option<KubernetesObjectReference> {
        let any = reference.reference.as_ref().filter(|any| any.type_url == KUBERNETES_OBJECT)?;
        prost::Message::decode(any.value.as_slice()).ok()
    }
}

/// SPIRE's Delegated Identity API.
pub mod delegated {
    tonic::include_proto!("spire.api.agent.delegatedidentity.v1");
}
