//! A server that answers as told, over real TLS, and remembers every request to the letter.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// One request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    /// After `/v1/`, with the query.
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Value,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(super) fn token(&self) -> &str {
        self.header("x-vault-token")
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub(super) struct Say {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
    pub(super) kind: &'static str,
}

pub(super) fn say(status: u16, body: impl std::borrow::Borrow<Value>) -> Say {
    let body = body.borrow();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    Say { status, headers: Vec::new(), body, kind: "application/json" }
}

pub(super) fn errors(status: u16, messages: &[&str]) -> Say {
    say(status, json!({ "errors": messages }))
}

impl Say {
    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

type Script = Box<dyn FnMut(&Seen) -> Option<Say> + Send>;

/// What is said on event streams that are open.
type Streams = Arc<Mutex<Vec<mpsc::UnboundedSender<String>>>>;

pub(super) struct Server {
    pub(super) address: SocketAddr,
    folder: tempfile::TempDir,
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Arc<Mutex<Script>>,
    streams: Streams,
    _tasks: JoinSet<()>,
}

impl Server {
    /// A server for the name `localhost` and for 127.0.0.1.
    pub(super) async fn start(script: impl FnMut(&Seen) -> Option<Say> + Send + 'static) -> Self {
        let (tls, ca) = certificate();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), ca).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(script)));
        let (to, by) = (Arc::clone(&seen), Arc::clone(&script));
        let streams = Streams::default();
        let over = Arc::clone(&streams);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, to, by) = (tls.clone(), Arc::clone(&to), Arc::clone(&by));
                let over = Arc::clone(&over);
                connections.spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let upgraded = Arc::<Mutex<Option<OnUpgrade>>>::default();
                    let wanted = Arc::clone(&upgraded);
                    let service = service_fn(move |request| {
                        answer(request, Arc::clone(&to), Arc::clone(&by), Arc::clone(&wanted))
                    });
                    let served = auto::Builder::new(TokioExecutor::new());
                    // A client that hangs up is part of some tests.
                    drop(served.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
                    let upgrade = upgraded.lock().unwrap().take();
                    if let Some(upgrade) = upgrade {
                        stream_events(upgrade, &over).await;
                    }
                });
            }
        });
        Self { address, folder, seen, script, streams, _tasks: tasks }
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(super) fn now_says(&self, script: impl FnMut(&Seen) -> Option<Say> + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    /// How many event streams are open.
    pub(super) fn streams(&self) -> usize {
        let mut streams = self.streams.lock().unwrap();
        streams.retain(|stream| !stream.is_closed());
        streams.len()
    }

    /// Says this on all event streams.
    pub(super) fn tell(&self, text: &str) {
        self.streams.lock().unwrap().iter().for_each(|stream| stream.send(text.to_owned()).unwrap());
    }

    /// Ends all event streams.
    pub(super) fn hang_up(&self) {
        self.streams.lock().unwrap().clear();
    }

    /// What came since it was asked last, as `METHOD path`.
    pub(super) fn lines(&self) -> Vec<String> {
        self.taken().into_iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }

    pub(super) fn taken(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn certificate() -> (TlsAcceptor, String) {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&key).unwrap();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::IpAddress("127.0.0.1".parse().unwrap()),
        SanType::DnsName("vault.test".try_into().unwrap()),
    ];
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(leaf.der().to_vec())],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), root.pem())
}

/// Sends what is to be said until either side has enough.
async fn stream_events(upgrade: OnUpgrade, over: &Streams) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let (outbox, mut inbox) = mpsc::unbounded_channel();
    over.lock().unwrap().push(outbox);
    loop {
        tokio::select! {
            text = inbox.recv() => match text {
                Some(text) => socket.send(Message::text(text)).await.unwrap(),
                None => return,
            },
            heard = socket.next() => match heard {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

async fn answer(
    mut request: Request<Incoming>,
    to: Arc<Mutex<Vec<Seen>>>,
    by: Arc<Mutex<Script>>,
    wanted: Arc<Mutex<Option<OnUpgrade>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let upgrade = request.headers().contains_key("upgrade").then(|| hyper::upgrade::on(&mut request));
    let path = request.uri().path_and_query().unwrap().as_str();
    let headers = request.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let mut seen = Seen {
        method: request.method().to_string(),
        path: path.strip_prefix("/v1/").expect("every path begins with /v1/").to_owned(),
        headers,
        body: Value::Null,
    };
    let body = request.into_body().collect().await.unwrap().to_bytes();
    if !body.is_empty() {
        assert_eq!(seen.header("content-type"), "application/json");
        seen.body = serde_json::from_slice(&body).unwrap();
    }
    assert_eq!(seen.header("x-vault-request"), "true");
    let say = (by.lock().unwrap())(&seen);
    let accepted = derive_accept_key(seen.header("sec-websocket-key").as_bytes());
    to.lock().unwrap().push(seen);
    if let (Some(upgrade), Some(Say { status: 101, .. })) = (upgrade, &say) {
        *wanted.lock().unwrap() = Some(upgrade);
        let response = Response::builder()
            .status(101)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-accept", accepted);
        return Ok(response.body(Full::default()).unwrap());
    }
    let Some(say) = say else { return std::future::pending().await };
    let mut response = Response::builder().status(say.status).header("content-type", say.kind);
    for (name, value) in say.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(Bytes::from(say.body))).unwrap())
}
