//! A stand-in for the API server, over real TLS: it keeps objects as the real one does (versions, conflicts, patches,
//! watches), answers by script where a test wants a fault, and writes down every question.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, IsCa, SanType};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::clock::Clock;
use crate::identity::key::PrivateKey;
use crate::identity::svid::moment;
use crate::issuer::root::{Root, live};
use crate::issuer::tests::cluster::{NOW, write};
use crate::kubernetes::{Api, Caller, Server};

/// An answer by script: a status, headers and a body; or none, for ever.
pub(crate) enum Reply {
    Answer(u16, String),
    Redirect(String),
    RetryAfter(u16, u64),
    Never,
}

/// One change of one object.
struct Happened {
    version: u64,
    path: String,
    kind: &'static str,
    object: Value,
}

#[derive(Default)]
struct Kept {
    version: u64,
    objects: BTreeMap<String, Value>,
    history: Vec<Happened>,
    /// Counts how often all watches were ended.
    cut: u64,
}

struct State {
    replies: Mutex<VecDeque<Reply>>,
    questions: Mutex<Vec<Value>>,
    objects_kept: Mutex<Kept>,
    ticks: watch::Sender<u64>,
}

/// A running stand-in.
pub(crate) struct ApiServer {
    pub(crate) address: SocketAddr,
    pub(crate) ca_pem: String,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

type Body = BoxBody<Bytes, Infallible>;

pub(crate) fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed()
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let now = moment(NOW);
        let ca = Root::generate(&"cluster.local".parse().unwrap(), now).unwrap();
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        live(&mut params, now, now + Duration::from_secs(365 * 86400));
        let leaf = params.signed_by(&key, &ca.issuer).unwrap().der().to_vec();
        let pkcs8 = PrivatePkcs8KeyDer::from(key.to_pkcs8().unwrap().expose().to_vec());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(leaf)], PrivateKeyDer::Pkcs8(pkcs8))
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            replies: Mutex::default(),
            questions: Mutex::default(),
            objects_kept: Mutex::default(),
            ticks: watch::Sender::new(0),
        });
        let shared = Arc::clone(&state);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, state) = (tls.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        let state = Arc::clone(&state);
                        async move { Ok::<_, Infallible>(answer(request, state).await) }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    // A client that hangs up is part of some tests.
                    drop(served);
                });
            }
        });
        Self { address, ca_pem: pem(&ca.der), state, _tasks: tasks }
    }

    /// What a pod in `dir` would know of it.
    pub(crate) fn server(&self, dir: &Path) -> Server {
        write(&dir.join("ca.crt"), self.ca_pem.as_bytes());
        write(&dir.join("token"), b"own-token\n");
        Server {
            url: format!("https://{}", self.address).parse().unwrap(),
            ca: dir.join("ca.crt"),
            token: dir.join("token"),
        }
    }

    pub(crate) fn api(&self, dir: &Path, clock: Clock) -> Arc<Api> {
        Arc::new(Api::new(self.server(dir), Caller::Agent, clock))
    }

    /// The next question is answered like this.
    pub(crate) fn will(&self, reply: Reply) {
        self.state.replies.lock().unwrap().push_back(reply);
    }

    pub(crate) fn will_answer(&self, status: u16, body: &Value) {
        self.will(Reply::Answer(status, body.to_string()));
    }

    /// The next question is refused like this.
    pub(crate) fn will_refuse(&self, status: u16, message: &str) {
        self.will_answer(status, &refusal(message));
    }

    /// Every question so far.
    pub(crate) fn questions(&self) -> Vec<Value> {
        self.state.questions.lock().unwrap().clone()
    }

    /// Questions with this method and a path that begins so.
    pub(crate) fn asked(&self, method: &str, path: &str) -> usize {
        let asked = |q: &&Value| {
            q["head"]["method"] == method && q["head"]["path"].as_str().unwrap().starts_with(path)
        };
        self.questions().iter().filter(asked).count()
    }

    /// Puts an object there as an administrator would.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.state.put(path, object);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state.remove(path);
    }

    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.state.objects_kept.lock().unwrap().objects.get(path).cloned()
    }

    /// Ends every watch, as the API server does when it feels like it.
    pub(crate) fn cut_watches(&self) {
        self.state.objects_kept.lock().unwrap().cut += 1;
        self.state.tick();
    }

    /// Waits until an object fits.
    pub(crate) async fn until(&self, path: &str, fits: impl Fn(Option<&Value>) -> bool) {
        let mut ticks = self.state.ticks.subscribe();
        while !fits(self.object(path).as_ref()) {
            ticks.changed().await.unwrap();
        }
    }
}

pub(crate) fn refusal(message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message})
}

impl State {
    fn tick(&self) {
        self.ticks.send_modify(|ticks| *ticks += 1);
    }

    fn put(&self, path: &str, mut object: Value) -> Value {
        let mut kept = self.objects_kept.lock().unwrap();
        kept.version += 1;
        let version = kept.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let kind = if kept.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        kept.objects.insert(path.to_owned(), object.clone());
        kept.history.push(Happened { version, path: path.to_owned(), kind, object: object.clone() });
        drop(kept);
        self.tick();
        object
    }

    fn remove(&self, path: &str) {
        let mut kept = self.objects_kept.lock().unwrap();
        kept.version += 1;
        let version = kept.version;
        let object = kept.objects.remove(path).unwrap();
        kept.history.push(Happened { version, path: path.to_owned(), kind: "DELETED", object });
        drop(kept);
        self.tick();
    }

    /// What happened to `path` after `version`; none when all watches were ended since `cut`.
    fn after(&self, path: &str, version: u64, cut: u64) -> Option<Vec<(u64, String)>> {
        let kept = self.objects_kept.lock().unwrap();
        if kept.cut != cut {
            return None;
        }
        let later = kept.history.iter().filter(|one| one.version > version && one.path == path);
        Some(
            later
                .map(|one| (one.version, format!("{}\n", json!({"type": one.kind, "object": one.object}))))
                .collect(),
        )
    }

    fn kept(self: &Arc<Self>, method: &str, uri: &http::Uri, media: &str, body: &Value) -> (u16, Body) {
        let path = uri.path().to_owned();
        let query: BTreeMap<String, String> = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let selected = query.get("fieldSelector").map(|selector| {
            let name = selector.strip_prefix("metadata.name%3D").unwrap();
            format!("{path}/{name}")
        });
        let json = |code: u16, value: &Value| (code, whole(value.to_string()));
        match (method, selected) {
            ("GET", Some(object)) if query.contains_key("watch") => {
                let version: u64 = query["resourceVersion"].parse().unwrap();
                assert_eq!(query["allowWatchBookmarks"], "true");
                (200, self.watched(object, version))
            }
            ("GET", Some(object)) => {
                let kept = self.objects_kept.lock().unwrap();
                let items: Vec<_> = kept.objects.get(&object).into_iter().collect();
                let version = kept.version.to_string();
                json(200, &json!({"kind": "List", "metadata": {"resourceVersion": version}, "items": items}))
            }
            ("GET", None) => match self.objects_kept.lock().unwrap().objects.get(&path) {
                Some(object) => json(200, object),
                None => json(404, &refusal("not found")),
            },
            ("POST", None) => {
                let name = body["metadata"]["name"].as_str().unwrap();
                let own = format!("{path}/{name}");
                if self.objects_kept.lock().unwrap().objects.contains_key(&own) {
                    return json(409, &refusal("already exists"));
                }
                json(201, &self.put(&own, body.clone()))
            }
            ("PATCH", None) => {
                let Some(mut object) = self.objects_kept.lock().unwrap().objects.get(&path).cloned() else {
                    return json(404, &refusal("not found"));
                };
                match media {
                    "application/merge-patch+json" => {
                        let wanted = &body["metadata"]["resourceVersion"];
                        if !wanted.is_null() && *wanted != object["metadata"]["resourceVersion"] {
                            return json(409, &refusal("the object has been modified"));
                        }
                        merge(&mut object, body);
                    }
                    "application/json-patch+json" => {
                        if !patched(&mut object, body) {
                            return json(422, &refusal("the server rejected our request"));
                        }
                    }
                    other => return json(415, &refusal(other)),
                }
                json(200, &self.put(&path, object))
            }
            (other, _) => panic!("{other} {uri}"),
        }
    }

    fn watched(self: &Arc<Self>, path: String, version: u64) -> Body {
        let cut = self.objects_kept.lock().unwrap().cut;
        let start = (Arc::clone(self), self.ticks.subscribe(), version);
        let lines = stream::unfold(start, move |(state, mut ticks, version)| {
            let path = path.clone();
            async move {
                loop {
                    ticks.borrow_and_update();
                    let happened = state.after(&path, version, cut)?;
                    if let Some((last, _)) = happened.last() {
                        let last = *last;
                        let text: String = happened.into_iter().map(|(_, line)| line).collect();
                        let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(text)));
                        return Some((frame, (state, ticks, last)));
                    }
                    ticks.changed().await.ok()?;
                }
            }
        });
        BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(lines)))))
    }
}

/// A boxed body has to be `Sync`; this stream is polled by one connection only.
struct SyncStream<S>(Mutex<std::pin::Pin<Box<S>>>);

impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.lock().unwrap().as_mut().poll_next(context)
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

/// RFC 6902, the operations that are used here.
pub(crate) fn patched(target: &mut Value, patch: &Value) -> bool {
    for step in patch.as_array().unwrap() {
        let place = step["path"].as_str().unwrap();
        let (parent, last) = place.rsplit_once('/').unwrap();
        let last = last.replace("~1", "/").replace("~0", "~");
        match step["op"].as_str().unwrap() {
            "test" => {
                if target.pointer(place) != Some(&step["value"]) {
                    return false;
                }
            }
            "remove" => {
                let removed = match target.pointer_mut(parent) {
                    Some(Value::Array(items)) => {
                        let at: usize = last.parse().unwrap();
                        at < items.len() && {
                            items.remove(at);
                            true
                        }
                    }
                    Some(Value::Object(members)) => members.remove(&last).is_some(),
                    _ => false,
                };
                if !removed {
                    return false;
                }
            }
            "add" | "replace" => match target.pointer_mut(parent) {
                Some(Value::Array(items)) if last == "-" => items.push(step["value"].clone()),
                Some(Value::Array(items)) => items.insert(last.parse().unwrap(), step["value"].clone()),
                Some(Value::Object(members)) => {
                    members.insert(last, step["value"].clone());
                }
                _ => return false,
            },
            other => panic!("{other}"),
        }
    }
    true
}

/// Answers one question, and writes it down.
async fn answer(request: Request<Incoming>, state: Arc<State>) -> Response<Body> {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let head = json!({
        "method": request.method().as_str(),
        "path": request.uri().to_string(),
        "authorization": header("authorization"),
        "content-type": header("content-type"),
        "accept": header("accept"),
        "user-agent": header("user-agent"),
    });
    let (method, uri) = (request.method().to_string(), request.uri().clone());
    let media = header("content-type").unwrap_or_default();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    state.questions.lock().unwrap().push(json!({ "head": head, "body": body }));
    state.tick();
    let reply = state.replies.lock().unwrap().pop_front();
    let response = Response::builder().header("content-type", "application/json");
    let (response, body) = match reply {
        None => {
            let (status, body) = state.kept(&method, &uri, &media, &body);
            (response.status(status), body)
        }
        Some(Reply::Answer(status, body)) => (response.status(status), whole(body)),
        Some(Reply::Redirect(to)) => (response.status(307).header("location", to), whole("")),
        Some(Reply::RetryAfter(status, seconds)) => {
            let body = whole(refusal("slow down").to_string());
            (response.status(status).header("retry-after", seconds), body)
        }
        Some(Reply::Never) => std::future::pending().await,
    };
    response.body(body).unwrap()
}
