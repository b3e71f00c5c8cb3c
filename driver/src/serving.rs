//! Serving gRPC on a Unix socket: hyper's HTTP/2 straight under the generated services.
//!
//! Kubelet makes a new connection for every call, three of them for each republish, so at rest the driver costs what its
//! connections cost. The server that comes with tonic puts a router, layers and a timer around each; two services
//! on a local socket need none of it.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;

use crate::executor::Tracked;

/// Wait before the next connection is accepted when one could not be: out of descriptors, most likely.
const AGAIN: Duration = Duration::from_millis(100);

/// The answer to one call.
pub(crate) type Answer = BoxFuture<Response<Body>, Infallible>;

/// Serves the connections of `listener` until `stop`; returns when the calls that run then have been answered.
pub(crate) async fn serve<Services>(listener: UnixListener, services: Services, stop: CancellationToken)
where
    Services: Fn(Request<Incoming>) -> Answer + Clone + Send + 'static,
{
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(converse(stream, services.clone(), connections.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                sleep(AGAIN).await;
            }
        }
    }
    // No more are to come: the socket stays for whoever removes it, but nobody waits in it for an answer.
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn converse<Services>(
    stream: UnixStream,
    services: Services,
    calls: TaskTracker,
    stop: CancellationToken,
) where
    Services: Fn(Request<Incoming>) -> Answer + Send + 'static,
{
    let mut server = http2::Builder::new(Tracked(calls));
    // gRPC has no use for the time of day in each answer.
    server.auto_date_header(false);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service_fn(services)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// The service that a request is for, as its path names it: `/<service>/<method>`.
pub(crate) fn service_of<Message>(request: &Request<Message>) -> &str {
    let path = request.uri().path();
    path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(service, _)| service)
}

/// The answer to a call of a service that is not offered on this socket.
pub(crate) fn not_offered() -> Answer {
    let response = Status::unimplemented("no such service on this socket").into_http();
    Box::pin(std::future::ready(Ok(response)))
}
