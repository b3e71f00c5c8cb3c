//! The Broker API: SPIRE attests a pod by its Kubernetes reference and streams its SVIDs to us.

use std::io;
use std::sync::Arc;

use countersign_proto::broker::api_client::ApiClient;
use countersign_proto::broker::{FetchJwtsvidRequest, SubscribeToX509svidRequest, pod_reference};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::JWT_LIMIT;
use super::material::Update;
use super::own::Own;
use super::socket::{self, Socket};
use crate::identity::Workload;
use crate::secret::Secret;

/// Client of one SPIRE agent's broker socket: one connection, a stream for each pod.
#[derive(Debug)]
pub(super) struct Broker {
    socket: Socket,
    client: ApiClient<Channel>,
    own: Arc<Own>,
}

impl Broker {
    pub(super) fn new(socket: &Socket, own: Arc<Own>) -> Self {
        let us = Arc::clone(&own);
        let client = ApiClient::new(socket::secured(socket, move || us.tls()));
        Self { socket: socket.clone(), client, own }
    }

    /// Whether a SPIRE agent answers at the socket, by a connection of its own.
    pub(super) async fn knock(&self) -> io::Result<()> {
        socket::knock(&self.socket, self.own.tls()?).await
    }

    pub(super) fn own(&self) -> &Own {
        &self.own
    }

    /// Everything SPIRE says of the pod from now on.
    pub(super) async fn subscribe(
        &self,
        workload: &Workload,
    ) -> Result<BoxStream<'static, Result<Update, Status>>, Status> {
        let request = request(SubscribeToX509svidRequest { reference: Some(reference(workload)) });
        let stream = self.client.clone().subscribe_to_x509svid(request).await?.into_inner();
        Ok(stream.map(|message| message.map(Update::from)).boxed())
    }

    /// The pod's JWT-SVIDs for `audience`, with the SPIFFE ID that SPIRE says they are for.
    pub(super) async fn jwts(
        &self,
        workload: &Workload,
        audience: &str,
        spiffe_id: &str,
    ) -> Result<Vec<(String, Secret)>, Status> {
        let mut request = request(FetchJwtsvidRequest {
            reference: Some(reference(workload)),
            audience: vec![audience.to_owned()],
            spiffe_id: spiffe_id.to_owned(),
        });
        request.set_timeout(JWT_LIMIT);
        let answer = self.client.clone().fetch_jwtsvid(request).await?.into_inner();
        Ok(answer.svids.into_iter().map(|svid| (svid.spiffe_id, Secret::from(svid.svid))).collect())
    }
}

fn reference(workload: &Workload) -> countersign_proto::broker::WorkloadReference {
    pod_reference(&workload.namespace, &workload.pod_name, &workload.pod_uid)
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("broker.spiffe.io", AsciiMetadataValue::from_static("true"));
    request
}
