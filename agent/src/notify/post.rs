//! The one HTTP request that tells of a change.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;

use super::Notice;

#[derive(Serialize)]
struct Body<'a> {
    volume: &'a str,
    generation: &'a str,
    changed: &'a BTreeSet<String>,
}

/// One call to a pod; the answer's body is not looked at.
pub(super) async fn post(address: SocketAddr, notice: &Notice) -> Result<StatusCode, String> {
    let said = |error: hyper::Error| {
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    };
    let body =
        Body { volume: notice.volume.as_str(), generation: &notice.generation, changed: &notice.files };
    let body = serde_json::to_vec(&body).map_err(|error| error.to_string())?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(notice.target.path.as_str())
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
