//! The stand-in against a driver that does what it is told.

use std::collections::VecDeque;
use std::sync::Mutex;

use countersign_proto::csi::node_server::{Node, NodeServer};
use countersign_proto::csi::*;
use countersign_proto::registration::registration_server::{Registration, RegistrationServer};
use countersign_proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

use super::*;

type Answer<T> = Result<Response<T>, Status>;

/// Answers publish and unpublish with the codes it was given, and with OK when there are none left.
#[derive(Debug, Default)]
struct Scripted {
    endpoint: String,
    publish: Mutex<VecDeque<Code>>,
    unpublish: Mutex<VecDeque<Code>>,
    calls: Mutex<Vec<String>>,
}

impl Scripted {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

fn next<T>(script: &Mutex<VecDeque<Code>>, answer: T) -> Answer<T> {
    match script.lock().unwrap().pop_front() {
        Some(code) => Err(Status::new(code, "as told")),
        None => Ok(Response::new(answer)),
    }
}

#[tonic::async_trait]
impl Registration for Scripted {
    async fn get_info(&self, _: Request<InfoRequest>) -> Answer<PluginInfo> {
        self.note("get_info");
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: "scripted".into(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Answer<RegistrationStatusResponse> {
        self.note(format!("registered {}", request.get_ref().plugin_registered));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Node for Scripted {
    async fn node_publish_volume(
        &self,
        r: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let request = r.into_inner();
        assert!(request.readonly && request.secrets.contains_key(TOKENS_KEY));
        let target = std::path::PathBuf::from(&request.target_path);
        assert!(
            target.parent().unwrap().is_dir() && request.target_path.contains("/volumes/kubernetes.io~csi/")
        );
        self.note("publish");
        next(&self.publish, NodePublishVolumeResponse {})
    }

    async fn node_unpublish_volume(
        &self,
        _: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        self.note("unpublish");
        next(&self.unpublish, NodeUnpublishVolumeResponse {})
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        Ok(Response::new(NodeGetCapabilitiesResponse::default()))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        Ok(Response::new(NodeGetInfoResponse { node_id: "n1".into(), ..Default::default() }))
    }

    async fn node_stage_volume(&self, _: Request<NodeStageVolumeRequest>) -> Answer<NodeStageVolumeResponse> {
        Err(Status::unimplemented("stage"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        Err(Status::unimplemented("unstage"))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        Err(Status::unimplemented("stats"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Answer<NodeExpandVolumeResponse> {
        Err(Status::unimplemented("expand"))
    }
}

/// Kubelet with the scripted driver registered.
struct Rig {
    kubelet: Arc<Kubelet>,
    driver: Arc<Scripted>,
    _directory: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

async fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let backoff = Backoff { first: Duration::from_millis(1), most: Duration::from_millis(4) };
    let cluster = Arc::new(Cluster::new().unwrap());
    let kubelet = Arc::new(Kubelet::new(directory.path(), "n1", cluster).unwrap().with_backoff(backoff));
    let csi = kubelet.root().join("csi.sock");
    let driver = Arc::new(Scripted { endpoint: csi.display().to_string(), ..Scripted::default() });
    let mut tasks = JoinSet::new();
    let node = UnixListenerStream::new(UnixListener::bind(&csi).unwrap());
    let service = NodeServer::from_arc(Arc::clone(&driver));
    tasks.spawn(
        async move { Server::builder().add_service(service).serve_with_incoming(node).await.unwrap() },
    );
    let socket = kubelet.registry().join("scripted@reg.sock");
    let registration = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let service = RegistrationServer::from_arc(Arc::clone(&driver));
    tasks.spawn(async move {
        Server::builder().add_service(service).serve_with_incoming(registration).await.unwrap();
    });
    let watching = Arc::clone(&kubelet);
    tasks.spawn(async move { watching.watch_plugins().await });
    kubelet.registered(Duration::from_secs(5)).await.unwrap();
    assert_eq!(driver.calls(), ["get_info", "registered true"]);
    Rig { kubelet, driver, _directory: directory, _tasks: tasks }
}

const LONG: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_driver_registers_and_goes() {
    let rig = rig().await;
    let plugin = rig.kubelet.plugin().unwrap();
    assert_eq!((plugin.name.as_str(), plugin.node_id.as_str()), ("scripted", "n1"));
    fs::remove_file(rig.kubelet.registry().join("scripted@reg.sock")).unwrap();
    let mut gone = rig.kubelet.plugin.subscribe();
    tokio::time::timeout(LONG, gone.wait_for(Option::is_none)).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_may_heal_is_tried_again_and_unpublished() {
    let rig = rig().await;
    *rig.driver.publish.lock().unwrap() = [Code::Unavailable, Code::Aborted].into();
    let mut volume = rig.kubelet.volume(&Pod::new("a", "b", "c"), Volume::new());
    volume.publish(LONG).await.unwrap();
    assert_eq!(rig.driver.calls(), ["publish"; 3]);
    *rig.driver.unpublish.lock().unwrap() = [Code::Internal].into();
    volume.unpublish(LONG).await.unwrap();
    assert_eq!(rig.driver.calls(), ["unpublish"; 2]);
    assert_eq!(rig.kubelet.remains().unwrap(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn after_a_final_answer_nobody_asks_for_an_unpublish() {
    let rig = rig().await;
    *rig.driver.publish.lock().unwrap() = [Code::InvalidArgument].into();
    let mut volume = rig.kubelet.volume(&Pod::new("a", "b", "c"), Volume::new());
    assert_eq!(volume.publish_once().await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(volume.state(), State::Unmounted);
    volume.unpublish(LONG).await.unwrap();
    assert_eq!(rig.driver.calls(), ["publish"]);
    assert_eq!(rig.kubelet.remains().unwrap(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn after_an_open_answer_it_is_unpublished() {
    let rig = rig().await;
    *rig.driver.publish.lock().unwrap() = [Code::DeadlineExceeded, Code::InvalidArgument].into();
    let mut volume = rig.kubelet.volume(&Pod::new("a", "b", "c"), Volume::new());
    volume.publish_once().await.unwrap_err();
    volume.publish_once().await.unwrap_err();
    assert_eq!(volume.state(), State::Uncertain);
    volume.unpublish(LONG).await.unwrap();
    assert_eq!(rig.driver.calls(), ["publish", "publish", "unpublish"]);
}

#[tokio::test]
async fn a_failed_republish_takes_nothing_away() {
    let rig = rig().await;
    let mut volume = rig.kubelet.volume(&Pod::new("a", "b", "c"), Volume::new());
    volume.publish_once().await.unwrap();
    *rig.driver.publish.lock().unwrap() = [Code::InvalidArgument].into();
    volume.publish_once().await.unwrap_err();
    assert_eq!(volume.state(), State::Mounted);
    assert!(volume.target().parent().unwrap().join("vol_data.json").exists());
}

#[tokio::test]
async fn a_file_left_behind_is_seen() {
    let rig = rig().await;
    let mut volume = rig.kubelet.volume(&Pod::new("a", "b", "c"), Volume::new());
    volume.publish_once().await.unwrap();
    fs::create_dir(volume.target()).unwrap();
    fs::write(volume.target().join("leak"), "").unwrap();
    let error = volume.unpublish(Duration::from_millis(20)).await.unwrap_err();
    assert!(format!("{error:#}").contains("mount"), "{error:#}");
}
