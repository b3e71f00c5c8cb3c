//! CSI's Node service.

use std::hash::RandomState;
use std::sync::Arc;

use countersign_proto::csi::node_server::Node;
use countersign_proto::csi::node_service_capability::rpc::Type as Capability;
use countersign_proto::csi::node_service_capability::{Rpc, Type};
use countersign_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse,
};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::error::{Error, sentence};
use crate::inflight::Inflight;
use crate::link::Link;
use crate::log::Throttle;
use crate::mount::Kernel;
use crate::request::{Offer, Publish, Rules, Unpublish};
use crate::signals::Signals;
use crate::target::KubeletRoot;
use crate::{publish, unpublish, volumes};

/// Everything an operation on a volume needs.
#[derive(Debug)]
pub struct Volumes {
    /// Kubelet's directory.
    pub root: KubeletRoot,
    /// What this kernel can do.
    pub kernel: Kernel,
    /// Owner of each volume's root.
    pub agent_uid: u32,
    /// Most bytes of one generation of a volume's files.
    pub capacity: u64,
    /// What is mounted.
    pub volumes: Arc<volumes::Volumes>,
    /// What is being worked on.
    pub inflight: Arc<Inflight>,
    /// The agent.
    pub link: Arc<Link>,
    /// Who asked for which signal.
    pub signals: Arc<Signals>,
    /// Makes fingerprints of requests.
    pub hasher: RandomState,
    /// Holds back complaints about an agent that is away.
    pub complaints: Throttle,
}

impl Volumes {
    /// What a volume gets from this driver.
    pub(crate) fn offer(&self) -> Offer {
        Offer { capacity: self.capacity, signals: self.signals.are_sent() }
    }
}

/// The Node service. Clones are the same service.
#[derive(Clone, Debug)]
pub struct NodeService {
    node_id: String,
    rules: Rules,
    volumes: Arc<Volumes>,
    /// Calls run here to their end: kubelet may cancel a call, but never leave it half done.
    running: TaskTracker,
}

impl NodeService {
    /// Makes the service; `running` has to be waited for before the process ends.
    #[must_use]
    pub const fn new(node_id: String, rules: Rules, volumes: Arc<Volumes>, running: TaskTracker) -> Self {
        Self { node_id, rules, volumes, running }
    }

    async fn to_its_end(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Result<(), Status> {
        let outcome = self.running.spawn(work).await.unwrap_or(Err(Error::Dropped));
        outcome.map_err(|error| refused(call, error))
    }
}

fn refused(call: &'static str, error: Error) -> Status {
    tracing::warn!(call, code = ?error.code(), error = sentence(&error), "refused");
    error.into()
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        const CALL: &str = "NodePublishVolume";
        let want = Publish::parse(request.into_inner(), &self.rules).map_err(|error| refused(CALL, error))?;
        let volumes = Arc::clone(&self.volumes);
        self.to_its_end(CALL, async move { publish::publish(&volumes, want).await }).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        const CALL: &str = "NodeUnpublishVolume";
        let gone =
            Unpublish::parse(request.get_ref(), &self.rules.root).map_err(|error| refused(CALL, error))?;
        let volumes = Arc::clone(&self.volumes);
        self.to_its_end(CALL, async move { unpublish::unpublish(&volumes, gone).await }).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        // Makes kubelet send the pod's fsGroup instead of changing owners itself.
        let group = Type::Rpc(Rpc { r#type: Capability::VolumeMountGroup.into() });
        let capabilities = vec![NodeServiceCapability { r#type: Some(group) }];
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _request: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let node_id = self.node_id.clone();
        Ok(Response::new(NodeGetInfoResponse { node_id, ..NodeGetInfoResponse::default() }))
    }

    async fn node_stage_volume(
        &self,
        _request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(Error::NotOffered { call: "NodeStageVolume", instead: "they are published at once" }.into())
    }

    async fn node_unstage_volume(
        &self,
        _request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(Error::NotOffered { call: "NodeUnstageVolume", instead: "they are unpublished at once" }.into())
    }

    async fn node_get_volume_stats(
        &self,
        _request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        Err(Error::NotOffered { call: "NodeGetVolumeStats", instead: "the agent's metrics tell their size" }
            .into())
    }

    async fn node_expand_volume(
        &self,
        _request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(Error::NotOffered { call: "NodeExpandVolume", instead: "their size is --volume-capacity" }.into())
    }
}

#[cfg(test)]
mod tests;
