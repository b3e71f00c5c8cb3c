//! CSI's Identity service.

use countersign_proto::csi::identity_server::Identity;
use countersign_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    ProbeRequest, ProbeResponse,
};
use tonic::{Request, Response, Status};

/// Version of this driver.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The Identity service.
#[derive(Clone, Debug)]
pub struct IdentityService {
    name: String,
}

impl IdentityService {
    /// Makes the service of the driver called `name`.
    #[must_use]
    pub const fn new(name: String) -> Self {
        Self { name }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let (name, vendor_version) = (self.name.clone(), VERSION.to_owned());
        Ok(Response::new(GetPluginInfoResponse { name, vendor_version, ..GetPluginInfoResponse::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        // A node-only driver has none.
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities: Vec::new() }))
    }

    async fn probe(&self, _request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        // Always ready: neither a store nor the agent being away is healed by restarting the driver.
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_says_who_it_is_and_that_it_is_ready() {
        let identity = IdentityService::new("csi.countersign.dev".into());
        let info =
            identity.get_plugin_info(Request::new(GetPluginInfoRequest {})).await.unwrap().into_inner();
        assert_eq!((info.name.as_str(), info.vendor_version.as_str()), ("csi.countersign.dev", VERSION));
        let request = Request::new(GetPluginCapabilitiesRequest {});
        let capabilities = identity.get_plugin_capabilities(request).await.unwrap().into_inner();
        assert_eq!(capabilities.capabilities, []);
        let probe = identity.probe(Request::new(ProbeRequest {})).await.unwrap().into_inner();
        assert_eq!(probe.ready, Some(true));
    }
}
