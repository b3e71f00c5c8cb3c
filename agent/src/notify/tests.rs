use std::net::IpAddr;

use countersign_proto::agent::SignalledRequest;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;

use super::post::is_a_pods;
use super::*;
use crate::issuer::tests::cluster::{Cluster, clock, workload};
use crate::kubernetes::events::Note;
use crate::kubernetes::pods::Pods;
use crate::kubernetes::testing::ApiServer;
use crate::request::Post;

const POD: &str = "/api/v1/namespaces/pay/pods/api-0";

/// A pod that answers with one status after another, the last one for ever; and us.
struct Scene {
    port: u16,
    heard: UnboundedReceiver<(String, Value)>,
    server: ApiServer,
    notifier: Notifier,
    signals: Signals,
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
        let (posts, signals) = (Some(Posts { pods, fit }), Signals::default());
        let caller = Caller { posts, signals: signals.clone(), metrics: Arc::clone(&metrics), events };
        let (notices, notifier) = Notices::calling(caller);
        let shutdown = CancellationToken::new();
        let ends = shutdown.clone();
        tasks.spawn(async move { notices.run(&ends).await });
        Self { port, heard, server, notifier, signals, metrics, told, shutdown, tasks, cluster }
    }

    fn change(&self, generation: &str, files: &[&str]) {
        let target = Post { port: self.port.try_into().unwrap(), path: "/-/reload".to_owned() };
        self.change_for(OnChange::Post(target), generation, files);
    }

    fn change_for(&self, target: OnChange, generation: &str, files: &[&str]) {
        self.notifier.tell(Notice {
            volume: VolumeId::from("csi-1"),
            workload: workload("api"),
            target,
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
    let pods = Pods::new(scene.server.api(scene.cluster.dir.path(), clock()), "node-1".to_owned());
    let caller = Caller {
        posts: Some(Posts { pods, fit: anybody }),
        signals: Signals::default(),
        metrics: Arc::default(),
        events: Recorder::off(),
    };
    let notice = Notice {
        volume: VolumeId::from("csi-1"),
        workload: workload("api"),
        target: OnChange::Post(Post { port: scene.port.try_into().unwrap(), path: "/".to_owned() }),
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

/// Answers the agent's orders one after another as a driver would, and says what they were for.
async fn obey(signals: &Signals, answers: &[(u32, &str)]) -> Vec<String> {
    let mut orders = signals.orders();
    let mut volumes = Vec::new();
    for (processes, problem) in answers {
        let order = orders.recv().await.unwrap();
        volumes.push(order.volume_id);
        let (processes, problem) = (*processes, (*problem).to_owned());
        signals.answered(SignalledRequest { order: order.order, processes, problem });
    }
    volumes
}

fn hup() -> OnChange {
    OnChange::Signal("signal:HUP@nginx".parse().unwrap())
}

#[tokio::test]
async fn a_signal_is_ordered_of_the_driver_and_tried_again_when_nobody_got_it() {
    let mut scene = Scene::new(&[204], anybody).await;
    scene.change_for(hup(), "..1", &["a"]);
    scene.change_for(hup(), "..2", &["b"]);
    let volumes = obey(&scene.signals, &[(0, "nginx does not handle SIGHUP"), (1, "")]).await;
    assert_eq!(volumes, ["csi-1", "csi-1"], "changes close together are one order, and that is made again");
    while !scene.counted(r#"countersign_notifications_total{result="ok"} 1"#) {
        tokio::task::yield_now().await;
    }
    assert!(scene.told.try_recv().is_err() && scene.heard.try_recv().is_err());
    scene.end().await;
}

#[tokio::test]
async fn before_a_container_runs_there_is_nobody_to_signal_and_no_trouble() {
    let mut scene = Scene::new(&[204], anybody).await;
    scene.change_for(hup(), "..1", &["a"]);
    obey(&scene.signals, &[(0, "")]).await;
    while !scene.counted(r#"countersign_notifications_total{result="nobody"} 1"#) {
        tokio::task::yield_now().await;
    }
    assert!(scene.told.try_recv().is_err());
    scene.end().await;
}

/// Without an API server, for its answers take time of their own.
fn signalling(signals: &Signals) -> (Caller, mpsc::Receiver<Note>) {
    let (events, told) = Recorder::pair();
    (Caller { posts: None, signals: signals.clone(), metrics: Arc::default(), events }, told)
}

fn signal_notice() -> Notice {
    Notice {
        volume: VolumeId::from("csi-1"),
        workload: workload("api"),
        target: hup(),
        generation: "..1".to_owned(),
        files: BTreeSet::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_never_arrives_is_told_by_an_event() {
    let signals = Signals::default();
    let (caller, mut told) = signalling(&signals);
    let problem = "no process nginx runs in the containers that mount the volume, but sh";
    let answers = [(0, problem); PAUSES.len() + 1];
    let notice = signal_notice();
    tokio::join!(caller.tell(&notice), obey(&signals, &answers));
    let note = told.try_recv().unwrap();
    assert_eq!(
        note.message,
        format!("the files have changed, and SIGHUP could not be sent (on-change): {problem}")
    );
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_is_not_there_goes_away_or_keeps_silent_is_tried_again() {
    let signals = Signals::default();
    let (caller, _told) = signalling(&signals);
    let notice = signal_notice();
    let failed = async || caller.call(&notice).await.unwrap_err().to_string();
    assert_eq!(failed().await, "no driver that has signals sent is connected");
    let silent = signals.orders();
    assert_eq!(failed().await, "the driver did not answer within 30 s");
    drop(silent);
    assert_eq!(failed().await, "the driver has gone away");
    let mut before = signals.orders();
    let (failed, ()) = tokio::join!(failed(), async {
        let order = before.recv().await.unwrap();
        drop(signals.orders());
        // It comes too late: another driver is asked now.
        signals.answered(SignalledRequest { order: order.order, processes: 1, problem: String::new() });
    });
    assert_eq!(failed, "the driver has gone away");
    signals.end();
    assert!(signals.orders().recv().await.is_none(), "the agent's end waits for no driver");
}
