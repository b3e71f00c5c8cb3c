//! A controller that makes nothing: it answers with the one volume that a pod would have.

use std::collections::HashMap;

use tonic::{Request, Response, Status, async_trait};

mod wire {
    #![allow(
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        clippy::clone_on_ref_ptr,
        missing_docs,
        unreachable_pub,
        reason = "generated code"
    )]
    tonic::include_proto!("csi.v1");
}

use wire::controller_server::Controller;
pub(crate) use wire::controller_server::ControllerServer;
use wire::validate_volume_capabilities_response::Confirmed;
use wire::{
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse, CreateVolumeRequest,
    CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse, Volume,
};

/// Kubernetes creates no inline volume: its id and context come with the pod. Here they come from "creating" it.
#[derive(Debug)]
pub(crate) struct Inline {
    /// The only id the driver takes for this pod and this volume of it.
    pub(crate) volume_id: String,
    /// What kubelet would put into `volume_context`.
    pub(crate) volume_context: HashMap<String, String>,
}

#[async_trait]
impl Controller for Inline {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        if request.name.is_empty() {
            return Err(Status::invalid_argument("name is missing"));
        }
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities is empty"));
        }
        let volume = Volume {
            capacity_bytes: 0,
            volume_id: self.volume_id.clone(),
            volume_context: self.volume_context.clone(),
        };
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        if request.get_ref().volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let ValidateVolumeCapabilitiesRequest { volume_id, volume_context, volume_capabilities } =
            request.into_inner();
        if volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        if volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities is empty"));
        }
        if volume_id != self.volume_id {
            return Err(Status::not_found("volume_id names no volume"));
        }
        let confirmed = Some(Confirmed { volume_context, volume_capabilities });
        Ok(Response::new(ValidateVolumeCapabilitiesResponse { confirmed, message: String::new() }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        Ok(Response::new(ControllerGetCapabilitiesResponse {}))
    }
}
