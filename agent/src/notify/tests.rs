use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::issuer::tests::cluster::{Cluster, clock, workload};
use crate::kubernetes::events::Note;
use crate::kubernetes::testing::ApiServer;

const POD: &str = "/api/v1/namespaces/pay/pods/api-0";

/// A pod that answers with one status after another, the last one for ever; and us.
struct Scene {
    port: u16,
    heard: UnboundedReceiver<(String, Value)>,
    server: ApiServer,
    notifier: Notifier,
    metrics: Arc<Metrics>,
    told: mpsc::Receiver<Note>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
    cluster: Cluster,
}

impl Scene {
    async fn new(answers: &'static [u16], fit: fn(IpAddr) -> bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (hear, heard) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut answers = answers.iter().copied().peekable();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let status = if answers.len() > 1 { answers.next() } else { answers.peek().copied() };
                let hear = hear.clone();
                let answer = service_fn(move |request: Request<Incoming>| {
                    let hear = hear.clone();
                    async move {
                        let line = format!("{} {}", request.method(), request.uri());
                        let body = request.into_body().collect().await?.to_bytes();
                        hear.send((line, serde_json::from_slice(&body).unwrap())).unwrap();
                        let answer = Response::builder().status(status.unwrap_or(204));
                        let answer = answer.header("location", "http://127.0.0.1:1/");
                        Ok::<_, hyper::Error>(answer.body(Full::<Bytes>::default()).unwrap())
                    }
                });
                let serving = hyper::server::conn::http1::Builder::new();
                serving.serve_connection(TokioIo::new(stream), answer).await.unwrap_or_default();
            }
        });
        let (cluster, server) = (Cluster::new(), ApiServer::start().await);
        server.put(POD, object());
        let pods = Pods::new(server.api(cluster.dir.path(), clock()), "node-1".to_owned());
        let ((events, told), metrics) = (Recorder::pair(), Arc::<Metrics>::default());
        let (notices, notifier) =
            Notices::calling(Caller { pods, metrics: Arc::clone(&metrics), events, fit });
        let shutdown = CancellationToken::new();
        let ends = shutdown.clone();
        tasks.spawn(async move { notices.run(&ends).await });
        Self { port, heard, server, notifier, metrics, told, shutdown, tasks, cluster }
    }

    fn change(&self, generation: &str, files: &[&str]) {
        self.notifier.tell(Notice {
            volume: VolumeId::from("csi-1"),
            workload: workload("api"),
            target: OnChange { port: self.port.try_into().unwrap(), path: "/-/reload".to_owned() },
            generation: generation.to_owned(),
            files: files.iter().map(|&name| name.to_owned()).collect(),
        });
    }

    fn counted(&self, line: &str) -> bool {
        self.metrics.text().unwrap().lines().any(|found| found == line)
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        self.tasks.shutdown().await;
    }
}

fn object() -> Value {
    json!({
        "metadata": {"name": "api-0", "namespace": "pay", "uid": "uid-api"},
        "spec": {"serviceAccountName": "api", "nodeName": "node-1"},
        "status": {"podIP": "127.0.0.1"},
    })
}

fn anybody(_: IpAddr) -> bool {
    true
}

#[tokio::test]
async fn changes_close_together_are_one_call_that_names_them_all() {
    let mut scene = Scene::new(&[204], anybody).await;
    scene.change("..1", &["tls.crt"]);
    scene.change("..2", &["password"]);
    let (head, body) = scene.heard.recv().await.unwrap();
    assert_eq!(head, "POST /-/reload");
    let expected = json!({"volume": "csi-1", "generation": "..2", "changed": ["password", "tls.crt"]});
    assert_eq!(body, expected);
    while !scene.counted(r#"countersign_notifications_total{result="ok"} 1"#) {
        tokio::task::yield_now().await;
    }
    scene.change("..3", &["password"]);
    let (_, body) = scene.heard.recv().await.unwrap();
    assert_eq!(body["changed"], json!(["password"]), "what was told is not told again");
    scene.end().await;
}

#[tokio::test]
async fn a_call_that_fails_is_made_again() {
    let mut scene = Scene::new(&[503, 204], anybody).await;
    scene.change("..1", &["a"]);
    let first = scene.heard.recv().await.unwrap();
    let second = scene.heard.recv().await.unwrap();
    assert_eq!(first, second);
    while !scene.counted(r#"countersign_notifications_total{result="ok"} 1"#) {
        tokio::task::yield_now().await;
    }
    assert!(scene.told.try_recv().is_err(), "no event for a call that arrived");
    scene.end().await;
}

#[tokio::test]
async fn what_can_never_arrive_is_told_at_once() {
    for (pointer, value, part) in [
        ("/spec/hostNetwork", json!(true), "the pod is on its node's network"),
        ("/status/podIP", json!("127.0.0.1"), "127.0.0.1 can't be a pod's own address"),
        ("/spec/nodeName", json!("node-2"), "is of node"),
    ] {
        let mut scene = Scene::new(&[204], is_a_pods).await;
        let mut pod = object();
        pod["spec"]["hostNetwork"] = false.into();
        *pod.pointer_mut(pointer).unwrap() = value;
        scene.server.put(POD, pod);
        scene.change("..1", &["a"]);
        let note = scene.told.recv().await.unwrap();
        assert!(note.reason == Reason::NotTold && note.message.contains(part), "{}", note.message);
        assert!(note.message.starts_with(&format!("the files have changed, and port {}", scene.port)));
        assert!(scene.counted(r#"countersign_notifications_total{result="failed"} 1"#));
        assert!(scene.heard.try_recv().is_err());
        scene.end().await;
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_a_refusal_says_what_was_answered() {
    let scene = Scene::new(&[302], anybody).await;
    let caller = Caller {
        pods: Pods::new(scene.server.api(scene.cluster.dir.path(), clock()), "node-1".to_owned()),
        metrics: Arc::default(),
        events: Recorder::off(),
        fit: anybody,
    };
    let notice = Notice {
        volume: VolumeId::from("csi-1"),
        workload: workload("api"),
        target: OnChange { port: scene.port.try_into().unwrap(), path: "/".to_owned() },
        generation: "..1".to_owned(),
        files: BTreeSet::new(),
    };
    let failed = caller.call(&notice).await.unwrap_err();
    assert_eq!(failed.to_string(), format!("127.0.0.1:{} answers 302 Found", scene.port));
    // A pod that goes has nobody to be told.
    let mut pod = object();
    pod["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z".into();
    scene.server.put(POD, pod);
    assert!(matches!(caller.call(&notice).await, Err(Failed::Gone)));
    scene.server.remove(POD);
    assert!(matches!(caller.call(&notice).await, Err(Failed::Gone)));
    scene.end().await;
}

#[tokio::test]
async fn a_volume_that_goes_is_not_called_for_any_more() {
    let mut scene = Scene::new(&[204], anybody).await;
    scene.change("..1", &["a"]);
    scene.notifier.forget(&VolumeId::from("csi-1"));
    scene.change("..2", &["b"]);
    let (_, body) = scene.heard.recv().await.unwrap();
    assert_eq!(body["changed"], json!(["b"]));
    scene.end().await;
}

#[test]
fn addresses_that_are_no_pods() {
    let fit = |text: &str| is_a_pods(text.parse().unwrap());
    assert!(["10.1.2.3", "192.168.0.1", "fd00::1", "2001:db8::1"].into_iter().all(fit));
    for text in [
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "::",
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "::ffff:127.0.0.1",
    ] {
        assert!(!fit(text), "{text}");
    }
}
