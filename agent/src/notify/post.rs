//! The one HTTP request that tells of a change.
//!
//! Its body names the generation and the files, never what is in them. The pod's address comes from the API server, by
//! the pod's uid; a pod on its node's network has none of its own and is not called.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;

use super::{Failed, Notice, Told};
use crate::kubernetes::pods::{PodError, Pods};
use crate::request::Post;

/// How long one call may take, the answer's head included.
const LIMIT: Duration = Duration::from_secs(5);

/// Calls pods.
#[derive(Debug)]
pub struct Posts {
    pub(super) pods: Pods,
    /// Whether an address may be a pod's own.
    pub(super) fit: fn(IpAddr) -> bool,
}

impl Posts {
    /// Calls the pods that are read here.
    pub(crate) fn new(pods: Pods) -> Self {
        Self { pods, fit: is_a_pods }
    }

    pub(super) async fn call(&self, notice: &Notice, target: &Post) -> Result<Told, Failed> {
        let pod = self.pods.read(&notice.workload).await.map_err(|error| match error {
            PodError::Gone { .. } | PodError::Another { .. } => Failed::Gone,
            PodError::Elsewhere { .. } | PodError::Forbidden { .. } => Failed::Never(error.to_string()),
            PodError::Api(_) => Failed::Again(error.to_string()),
        })?;
        if pod.metadata.deletion_timestamp.is_some() {
            return Err(Failed::Gone);
        }
        if pod.spec.host_network {
            let why = "the pod is on its node's network, where its address is not its own; watch the volume instead";
            return Err(Failed::Never(why.to_owned()));
        }
        let ip = pod.status.pod_ip.ok_or_else(|| Failed::Again("the pod has no address yet".to_owned()))?;
        if !(self.fit)(ip) {
            return Err(Failed::Never(format!("{ip} can't be a pod's own address")));
        }
        let address = SocketAddr::new(ip, target.port.get());
        match tokio::time::timeout(LIMIT, post(address, target, notice)).await {
            Ok(Ok(status)) if status.is_success() => Ok(Told::Answered(status.to_string())),
            // A redirect is no success either: it would be followed to somebody else.
            Ok(Ok(status)) => Err(Failed::Again(format!("{address} answers {status}"))),
            Ok(Err(error)) => Err(Failed::Again(format!("{address}: {error}"))),
            Err(_) => Err(Failed::Again(format!("{address}: no answer within {} s", LIMIT.as_secs()))),
        }
    }
}

/// Whether an address may be a pod's own: not this machine's, nor one that reaches many or nobody.
pub(super) fn is_a_pods(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let linked = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(linked || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

#[derive(Serialize)]
struct Body<'a> {
    volume: &'a str,
    generation: &'a str,
    changed: &'a BTreeSet<String>,
}

/// One call to a pod; the answer's body is not looked at.
async fn post(address: SocketAddr, target: &Post, notice: &Notice) -> Result<StatusCode, String> {
    let said = |error: hyper::Error| {
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    };
    let body =
        Body { volume: notice.volume.as_str(), generation: &notice.generation, changed: &notice.files };
    let body = serde_json::to_vec(&body).map_err(|error| error.to_string())?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(target.path.as_str())
        .header(HOST, address.to_string())
        .header(USER_AGENT, concat!("countersign/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer.map(|answer| answer.status()).map_err(said),
        ended = &mut connection => {
            ended.map_err(said)?;
            // What came before the end is still to be had.
            answer.await.map(|answer| answer.status()).map_err(said)
        }
    }
}
