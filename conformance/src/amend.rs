//! What csi-sanity cannot be told to say, said for it.
//!
//! It sends `readonly: false`, and names the target `target` where kubelet names it `mount`; the driver rightly
//! refuses both. Everything else passes byte for byte, missing fields included: what is amended is put *behind* the
//! message, for in protobuf the last of two scalars is the one that counts, and lists grow.

use bytes::{Bytes, BytesMut};
use countersign_proto::csi::plugin_capability::{Service, Type, service};
use countersign_proto::csi::{
    GetPluginCapabilitiesResponse, NodePublishVolumeRequest, NodeUnpublishVolumeRequest, PluginCapability,
};
use prost::{DecodeError, Message};

/// The two names of one target path.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// As csi-sanity writes it.
    pub(crate) sanity: String,
    /// As kubelet does.
    pub(crate) kubelet: String,
}

impl Target {
    /// Kubelet's path for csi-sanity's. Others, and an absent one, stay: empty means no amendment.
    fn amended(&self, path: &str) -> String {
        if path == self.sanity { self.kubelet.clone() } else { String::new() }
    }

    /// A request on its way to the driver.
    pub(crate) fn request(&self, method: &str, message: Bytes) -> Result<Bytes, DecodeError> {
        match method {
            "/csi.v1.Node/NodePublishVolume" => {
                let sent = NodePublishVolumeRequest::decode(message.clone())?;
                let target_path = self.amended(&sent.target_path);
                Ok(behind(
                    message,
                    &NodePublishVolumeRequest {
                        target_path,
                        readonly: true,
                        ..NodePublishVolumeRequest::default()
                    },
                ))
            }
            "/csi.v1.Node/NodeUnpublishVolume" => {
                let sent = NodeUnpublishVolumeRequest::decode(message.clone())?;
                let target_path = self.amended(&sent.target_path);
                Ok(behind(
                    message,
                    &NodeUnpublishVolumeRequest { target_path, ..NodeUnpublishVolumeRequest::default() },
                ))
            }
            _ => Ok(message),
        }
    }
}

/// An answer on its way to csi-sanity: the plugin it sees has a controller, the stand-in.
pub(crate) fn answer(method: &str, message: Bytes) -> Bytes {
    if method != "/csi.v1.Identity/GetPluginCapabilities" {
        return message;
    }
    let controller = Service { r#type: service::Type::ControllerService.into() };
    let capability = PluginCapability { r#type: Some(Type::Service(controller)) };
    behind(message, &GetPluginCapabilitiesResponse { capabilities: vec![capability] })
}

fn behind(message: Bytes, amendment: &impl Message) -> Bytes {
    let mut bytes = BytesMut::from(message);
    bytes.extend(amendment.encode_to_vec());
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISH: &str = "/csi.v1.Node/NodePublishVolume";

    fn target() -> Target {
        Target { sanity: "/pods/u/v/target".to_owned(), kubelet: "/pods/u/v/mount".to_owned() }
    }

    /// Sends a publish request through and answers how the driver sees it.
    fn publish(sent: &NodePublishVolumeRequest) -> NodePublishVolumeRequest {
        let bytes = target().request(PUBLISH, sent.encode_to_vec().into()).unwrap();
        NodePublishVolumeRequest::decode(bytes).unwrap()
    }

    #[test]
    fn a_publish_is_read_only_and_goes_to_kubelets_target() {
        let sent = NodePublishVolumeRequest {
            volume_id: "v".to_owned(),
            target_path: "/pods/u/v/target".to_owned(),
            secrets: [("k".to_owned(), "s".to_owned())].into(),
            volume_context: [("a".to_owned(), "b".to_owned())].into(),
            ..NodePublishVolumeRequest::default()
        };
        let wanted = NodePublishVolumeRequest {
            target_path: "/pods/u/v/mount".to_owned(),
            readonly: true,
            ..sent.clone()
        };
        assert!(publish(&sent) == wanted);
    }

    #[test]
    fn what_is_missing_stays_missing() {
        let empty = NodePublishVolumeRequest::default();
        assert!(publish(&empty) == NodePublishVolumeRequest { readonly: true, ..empty.clone() });
        let unpublish = target().request("/csi.v1.Node/NodeUnpublishVolume", Bytes::new()).unwrap();
        assert_eq!(unpublish, Bytes::new());
    }

    #[test]
    fn a_foreign_path_stays() {
        let sent =
            NodeUnpublishVolumeRequest { target_path: "some/path".to_owned(), volume_id: "v".to_owned() };
        let bytes = Bytes::from(sent.encode_to_vec());
        assert_eq!(target().request("/csi.v1.Node/NodeUnpublishVolume", bytes.clone()).unwrap(), bytes);
    }

    #[test]
    fn a_field_nobody_knows_passes() {
        // Field 99, a string.
        let unknown = Bytes::from_static(&[0x9a, 0x06, 0x01, b'x']);
        let bytes = target().request(PUBLISH, unknown.clone()).unwrap();
        assert!(bytes.starts_with(&unknown), "{bytes:?}");
    }

    #[test]
    fn the_plugin_gets_a_controller() {
        let bytes = answer("/csi.v1.Identity/GetPluginCapabilities", Bytes::new());
        let capabilities = GetPluginCapabilitiesResponse::decode(bytes).unwrap().capabilities;
        assert_eq!(capabilities.len(), 1);
        assert_eq!(answer("/csi.v1.Node/NodeGetInfo", Bytes::from_static(b"x")), Bytes::from_static(b"x"));
    }
}
