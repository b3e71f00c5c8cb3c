use countersign_proto::csi::identity_client::IdentityClient;
use countersign_proto::csi::identity_server::{self, IdentityServer};
use countersign_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    ProbeRequest, ProbeResponse,
};

use super::*;

struct Plugin;

#[tonic::async_trait]
impl identity_server::Identity for Plugin {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse { name: "csi.example.org".to_owned(), ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse::default()))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Err(Status::failed_precondition("not yet"))
    }
}

fn dial(socket: PathBuf) -> IdentityClient<Channel> {
    let connect = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    IdentityClient::new(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect))
}

#[tokio::test]
async fn calls_and_refusals_pass() {
    let directory = tempfile::tempdir().unwrap();
    let (behind, before) = (directory.path().join("driver.sock"), directory.path().join("sanity.sock"));
    let listener = UnixListenerStream::new(UnixListener::bind(&behind).unwrap());
    let plugin = Server::builder().add_service(IdentityServer::new(Plugin)).serve_with_incoming(listener);
    let target = Target { sanity: "a".to_owned(), kubelet: "b".to_owned() };
    let controller = Inline { volume_id: "v".to_owned(), volume_context: [].into() };
    let refusals = Refusals::default();
    let shim = serve(&before, behind, target, controller, Arc::clone(&refusals));
    let calls = async {
        let mut client = dial(before.clone());
        let name = client.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner().name;
        assert_eq!(name, "csi.example.org");
        let capabilities = client.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
        assert_eq!(capabilities.into_inner().capabilities.len(), 1);
        let refused = client.probe(ProbeRequest {}).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "not yet"));
    };
    tokio::select! {
        () = calls => {}
        served = shim => panic!("{served:?}"),
        served = plugin => panic!("{served:?}"),
    }
    let refusal =
        Refusal { call: "Probe".to_owned(), code: Code::FailedPrecondition, message: "not yet".to_owned() };
    assert_eq!(*refusals.lock().unwrap(), [refusal]);
}
