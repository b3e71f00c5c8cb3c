//! Stands between csi-sanity and the driver: one socket with Identity, Node and Controller.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::{Buf, BufMut, Bytes};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status};
use tower::{Service, service_fn};

use crate::amend::{self, Target};
use crate::controller::{ControllerServer, Inline};

/// What the driver refused, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Name of the call.
    pub(crate) call: String,
    /// Its code.
    pub(crate) code: Code,
    /// Its message.
    pub(crate) message: String,
}

/// The refusals of a run, in order.
pub(crate) type Refusals = Arc<Mutex<Vec<Refusal>>>;

/// Serves on `socket` until dropped, with the driver behind `driver`.
pub(crate) async fn serve(
    socket: &Path,
    driver: PathBuf,
    target: Target,
    controller: Inline,
    refusals: Refusals,
) -> Result<()> {
    let connect = service_fn(move |_| {
        let driver = driver.clone();
        async move { UnixStream::connect(driver).await.map(TokioIo::new) }
    });
    // The authority that csi-sanity and kubelet's CSI client send.
    let driver = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect);
    let target = Arc::new(target);
    let listener = UnixListener::bind(socket)?;
    Server::builder()
        .add_service(Relay::<Identity>::new(&driver, &target, &refusals))
        .add_service(Relay::<Node>::new(&driver, &target, &refusals))
        .add_service(ControllerServer::new(controller))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await?;
    Ok(())
}

#[derive(Debug, Clone)]
struct Identity;

impl NamedService for Identity {
    const NAME: &'static str = "csi.v1.Identity";
}

#[derive(Debug, Clone)]
struct Node;

impl NamedService for Node {
    const NAME: &'static str = "csi.v1.Node";
}

/// Passes every call of one service on, as bytes.
#[derive(Debug)]
struct Relay<N> {
    driver: Channel,
    target: Arc<Target>,
    refusals: Refusals,
    service: PhantomData<N>,
}

impl<N> Relay<N> {
    fn new(driver: &Channel, target: &Arc<Target>, refusals: &Refusals) -> Self {
        Self {
            driver: driver.clone(),
            target: Arc::clone(target),
            refusals: Arc::clone(refusals),
            service: PhantomData,
        }
    }

    async fn pass(
        self,
        call: http::uri::PathAndQuery,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        let (metadata, _, message) = request.into_parts();
        let amended = self.target.request(call.path(), message);
        let message = amended.map_err(|error| Status::internal(format!("stand-in: {error}")))?;
        let mut driver = tonic::client::Grpc::new(self.driver);
        driver.ready().await.map_err(|error| Status::unavailable(format!("stand-in: driver: {error}")))?;
        let request = Request::from_parts(metadata, tonic::Extensions::new(), message);
        let method = call.path().to_owned();
        match driver.unary(request, call, Untouched).await {
            Ok(answer) => Ok(answer.map(|message| amend::answer(&method, message))),
            Err(status) => {
                let call = method.rsplit('/').next().unwrap_or_default().to_owned();
                let refusal = Refusal { call, code: status.code(), message: status.message().to_owned() };
                self.refusals.lock().unwrap_or_else(PoisonError::into_inner).push(refusal);
                Err(status)
            }
        }
    }
}

impl<N> Clone for Relay<N> {
    fn clone(&self) -> Self {
        Self::new(&self.driver, &self.target, &self.refusals)
    }
}

impl<N: NamedService> NamedService for Relay<N> {
    const NAME: &'static str = N::NAME;
}

impl<N: Send + Sync + 'static> Service<http::Request<Body>> for Relay<N> {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let relay = self.clone();
        Box::pin(async move {
            let call = http::uri::PathAndQuery::try_from(request.uri().path());
            let pass = service_fn(move |request| {
                let (relay, call) = (relay.clone(), call.as_ref().ok().cloned());
                async move {
                    let call = call.ok_or_else(|| Status::unimplemented("stand-in: not a path"))?;
                    relay.pass(call, request).await
                }
            });
            Ok(tonic::server::Grpc::new(Untouched).unary(pass, request).await)
        })
    }
}

/// Messages as the bytes they are.
#[derive(Debug, Clone, Copy)]
struct Untouched;

impl Codec for Untouched {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Untouched {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Untouched {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[cfg(test)]
mod tests;
