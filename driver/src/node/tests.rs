use std::time::Duration;

use countersign_proto::csi::VolumeCapability;
use tonic::Code;

use super::*;
use crate::mount::Cloning;

/// The service on an empty kubelet root, without agent and without mounts.
fn service(root: &tempfile::TempDir) -> NodeService {
    let path = root.path().to_str().unwrap();
    let (known, inflight) = (Arc::new(volumes::Volumes::default()), Arc::new(Inflight::default()));
    let signals = Arc::new(Signals::default());
    let told = crate::link::Known {
        volumes: Arc::clone(&known),
        inflight: Arc::clone(&inflight),
        signals: Arc::clone(&signals),
    };
    let (link, _) = crate::link::link(root.path().join("link"), 0, told);
    let volumes = Volumes {
        root: KubeletRoot::open(path).unwrap(),
        kernel: Kernel { noswap: false, cloning: Cloning::Attached },
        agent_uid: 0,
        capacity: 1 << 20,
        volumes: known,
        inflight,
        link,
        signals,
        hasher: RandomState::new(),
        complaints: Throttle::new(Duration::from_secs(30)),
    };
    let rules = Rules { root: path.to_owned(), tokens_from_context: false };
    NodeService::new("n1".into(), rules, Arc::new(volumes), TaskTracker::new())
}

#[tokio::test]
async fn it_says_where_and_what_it_is() {
    let root = tempfile::tempdir().unwrap();
    let node = service(&root);
    let info = node.node_get_info(Request::new(NodeGetInfoRequest {})).await.unwrap().into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("n1", 0));
    let capabilities = node.node_get_capabilities(Request::new(NodeGetCapabilitiesRequest {})).await.unwrap();
    let kinds: Vec<_> = capabilities
        .into_inner()
        .capabilities
        .into_iter()
        .map(|capability| match capability.r#type {
            Some(Type::Rpc(rpc)) => rpc.r#type(),
            None => Capability::Unknown,
        })
        .collect();
    assert_eq!(kinds, [Capability::VolumeMountGroup]);
}

#[tokio::test]
async fn what_is_not_offered_says_what_is() {
    let root = tempfile::tempdir().unwrap();
    let node = service(&root);
    let refused = [
        node.node_stage_volume(Request::new(NodeStageVolumeRequest {})).await.unwrap_err(),
        node.node_unstage_volume(Request::new(NodeUnstageVolumeRequest {})).await.unwrap_err(),
        node.node_get_volume_stats(Request::new(NodeGetVolumeStatsRequest {})).await.unwrap_err(),
        node.node_expand_volume(Request::new(NodeExpandVolumeRequest {})).await.unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains("is not offered: countersign volumes are inline and ephemeral"));
    }
}

#[tokio::test]
async fn empty_requests_are_invalid_field_by_field() {
    let root = tempfile::tempdir().unwrap();
    let node = service(&root);
    let publish = async |request| node.node_publish_volume(Request::new(request)).await.unwrap_err();
    let mut request = NodePublishVolumeRequest::default();
    let mut seen = vec![publish(request.clone()).await];
    request.volume_id = "sanity-node-1".into();
    seen.push(publish(request.clone()).await);
    request.target_path = "/target".into();
    seen.push(publish(request.clone()).await);
    request.volume_capability = Some(VolumeCapability::default());
    seen.push(publish(request).await);
    let unpublish = async |request| node.node_unpublish_volume(Request::new(request)).await.unwrap_err();
    seen.push(unpublish(NodeUnpublishVolumeRequest::default()).await);
    let request = NodeUnpublishVolumeRequest { volume_id: "x".into(), target_path: String::new() };
    seen.push(unpublish(request).await);
    let fields = [
        "volume_id",
        "target_path",
        "volume_capability",
        "volume_capability.access_type",
        "volume_id",
        "target_path",
    ];
    assert_eq!(seen.len(), fields.len());
    for (status, field) in seen.iter().zip(fields) {
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), format!("{field} is missing from the request"));
    }
}
