//! A SPIRE agent that says what a test tells it to: the Workload API, and the Broker API behind real mTLS.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use countersign_proto::broker::api_server::{Api, ApiServer};
use countersign_proto::delegated::delegated_identity_server::DelegatedIdentityServer;
use countersign_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use countersign_proto::{broker, workload};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use super::authority::Signed;
use super::delegated;

/// What is said of one pod, by its uid.
pub(super) enum Word {
    Says(watch::Sender<broker::SubscribeToX509svidResponse>),
    Refuses(Status),
}

/// What the test has told it.
#[derive(Default)]
pub(super) struct Script {
    pub(super) own: Mutex<Option<watch::Sender<Result<workload::X509svidResponse, Status>>>>,
    pub(super) pods: Mutex<HashMap<String, Word>>,
    pub(super) jwts: Mutex<Option<Result<Vec<broker::Jwtsvid>, Status>>>,
    /// JWK Sets, by both APIs that have them.
    pub(super) keys: watch::Sender<HashMap<String, Vec<u8>>>,
    /// What the Delegated Identity API says.
    pub(super) delegated: delegated::Script,
    pub(super) subscribed: AtomicUsize,
    pub(super) open: AtomicUsize,
    /// References that came, for a look at them.
    pub(super) asked: Mutex<Vec<broker::KubernetesObjectReference>>,
}

pub(super) fn workload_message(svids: &[&Signed]) -> workload::X509svidResponse {
    let svid = |signed: &&Signed| workload::X509svid {
        spiffe_id: signed.id.clone(),
        x509_svid: signed.chain.clone(),
        x509_svid_key: signed.key.clone(),
        bundle: signed.bundle.clone(),
        hint: String::new(),
    };
    workload::X509svidResponse { svids: svids.iter().map(svid).collect(), ..Default::default() }
}

pub(super) fn broker_message(svids: &[&Signed]) -> broker::SubscribeToX509svidResponse {
    let svid = |signed: &&Signed| broker::X509svid {
        spiffe_id: signed.id.clone(),
        x509_svid: signed.chain.clone(),
        x509_svid_key: signed.key.clone(),
        bundle: signed.bundle.clone(),
        hint: String::new(),
    };
    broker::SubscribeToX509svidResponse { svids: svids.iter().map(svid).collect(), ..Default::default() }
}

/// Counts a stream for as long as it lives.
struct Open(Arc<Script>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(super) struct Service(pub(super) Arc<Script>);

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = BoxStream<'static, Result<workload::X509svidResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<workload::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        if request.metadata().get("workload.spiffe.io").is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        let own = self.0.own.lock().unwrap();
        let Some(own) = &*own else { return Err(Status::permission_denied("no identity issued")) };
        Ok(Response::new(WatchStream::new(own.subscribe()).boxed()))
    }

    type FetchJWTBundlesStream = BoxStream<'static, Result<workload::JwtBundlesResponse, Status>>;

    async fn fetch_jwt_bundles(
        &self,
        _: Request<workload::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let keys = WatchStream::new(self.0.keys.subscribe());
        Ok(Response::new(keys.map(|bundles| Ok(workload::JwtBundlesResponse { bundles })).boxed()))
    }
}

#[tonic::async_trait]
impl Api for Service {
    type SubscribeToX509SVIDStream = BoxStream<'static, Result<broker::SubscribeToX509svidResponse, Status>>;

    async fn subscribe_to_x509svid(
        &self,
        request: Request<broker::SubscribeToX509svidRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDStream>, Status> {
        let object = asked(&request, request.get_ref().reference.as_ref())?;
        self.0.subscribed.fetch_add(1, Ordering::SeqCst);
        self.0.asked.lock().unwrap().push(object.clone());
        let pods = self.0.pods.lock().unwrap();
        match pods.get(&object.uid) {
            None => Err(Status::not_found("pod pay/api-0 not found on agent node")),
            Some(Word::Refuses(status)) => Err(status.clone()),
            Some(Word::Says(messages)) => {
                self.0.open.fetch_add(1, Ordering::SeqCst);
                let open = Open(Arc::clone(&self.0));
                let messages = WatchStream::new(messages.subscribe()).map(move |message| {
                    let _ = &open;
                    Ok(message)
                });
                Ok(Response::new(messages.boxed()))
            }
        }
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<broker::FetchJwtsvidRequest>,
    ) -> Result<Response<broker::FetchJwtsvidResponse>, Status> {
        asked(&request, request.get_ref().reference.as_ref())?;
        let jwts = self.0.jwts.lock().unwrap().clone();
        let svids = jwts.unwrap_or_else(|| Err(Status::permission_denied("no identity issued")))?;
        Ok(Response::new(broker::FetchJwtsvidResponse { svids }))
    }
}

fn asked<T>(
    request: &Request<T>,
    reference: Option<&broker::WorkloadReference>,
) -> Result<broker::KubernetesObjectReference, Status> {
    if request.metadata().get("broker.spiffe.io").is_none_or(|value| value != "true") {
        return Err(Status::invalid_argument("security header missing from request"));
    }
    reference
        .and_then(broker::object)
        .ok_or_else(|| Status::invalid_argument("workload reference must be provided"))
}

/// A SPIRE agent. It runs until it is dropped.
pub(super) struct Fake {
    pub(super) script: Arc<Script>,
    directory: PathBuf,
    tasks: JoinSet<()>,
    killed: CancellationToken,
}

impl Fake {
    /// One whose sockets lie in `directory`, and that is known by `agent`.
    pub(super) fn start(directory: &Path, agent: &Signed) -> Self {
        let mut fake = Self {
            script: Arc::default(),
            directory: directory.to_owned(),
            tasks: JoinSet::new(),
            killed: CancellationToken::new(),
        };
        fake.serve(agent);
        fake
    }

    /// Serves as `agent`, on sockets that replace those left behind.
    pub(super) fn serve(&mut self, agent: &Signed) {
        self.killed = CancellationToken::new();
        let bind = |name| {
            let path = self.directory.join(name);
            std::fs::remove_file(&path).ok();
            UnixListenerStream::new(UnixListener::bind(path).unwrap())
        };
        let (killed, admin_killed) = (self.killed.clone(), self.killed.clone());
        let plain = bind("api.sock").map(move |stream| stream.map(|stream| Wire::new(stream, &killed)));
        let workload = SpiffeWorkloadApiServer::new(Service(Arc::clone(&self.script)));
        let serving = Server::builder().add_service(workload).serve_with_incoming(plain);
        self.tasks.spawn(async move { serving.await.unwrap() });
        let (acceptor, killed) = (acceptor(agent), self.killed.clone());
        let secured = bind("broker.sock").filter_map(move |stream| {
            let (acceptor, killed) = (acceptor.clone(), killed.clone());
            // Who fails the handshake is gone; who waits behind him comes next.
            async move {
                let stream = acceptor.accept(stream.ok()?).await.ok()?;
                Some(Ok::<_, io::Error>(Wire::new(stream, &killed)))
            }
        });
        let plain =
            bind("admin.sock").map(move |stream| stream.map(|stream| Wire::new(stream, &admin_killed)));
        let admin = DelegatedIdentityServer::new(Service(Arc::clone(&self.script)));
        let serving = Server::builder().add_service(admin).serve_with_incoming(plain);
        self.tasks.spawn(async move { serving.await.unwrap() });
        let broker = ApiServer::new(Service(Arc::clone(&self.script)));
        let serving = Server::builder().add_service(broker).serve_with_incoming(secured.boxed());
        self.tasks.spawn(async move { serving.await.unwrap() });
    }

    /// It dies, its connections with it, and its sockets stay behind.
    pub(super) async fn stop(&mut self) {
        self.killed.cancel();
        self.tasks.shutdown().await;
    }
}

fn acceptor(agent: &Signed) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(agent.bundle.clone())).unwrap();
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![CertificateDer::from(agent.chain.clone())],
            PrivatePkcs8KeyDer::from(agent.key.clone()).into(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// A connection that breaks when its agent dies.
struct Wire<S> {
    stream: S,
    dies: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Wire<S> {
    fn new(stream: S, killed: &CancellationToken) -> Self {
        Self { stream, dies: Box::pin(killed.clone().cancelled_owned()) }
    }
}

impl<S> Connected for Wire<S> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.dies.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
