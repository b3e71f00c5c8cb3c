//! One HTTP/2 connection to the agent, as the generated client wants it.
//!
//! There is no dialling, no balancing and no second try in it: when it ends, so does the link that was built on it.

use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};

use crate::executor::Tracked;

/// Sends requests over the connection. Clones send over the same.
#[derive(Clone, Debug)]
pub(crate) struct Channel(SendRequest<Body>);

/// The task that moves the connection's bytes; without it the connection is closed.
#[derive(Debug)]
pub(super) struct Driving {
    _task: AbortOnDropHandle<()>,
}

impl Channel {
    /// Begins HTTP/2 on a stream.
    pub(super) async fn open(stream: UnixStream) -> Result<(Self, Driving), hyper::Error> {
        let tasks = TaskTracker::new();
        let (requests, connection) =
            Builder::new(Tracked(tasks.clone())).handshake(TokioIo::new(stream)).await?;
        let driven = async {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the agent broke off");
            }
        };
        Ok((Self(requests), Driving { _task: AbortOnDropHandle::new(tasks.spawn(driven)) }))
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
