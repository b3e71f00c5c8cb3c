//! Vault's HTTP API, as the tests call it: with the root token, beside what is being tested.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use crate::authority::Authority;

/// How long an answer may take, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A client of one server.
#[derive(Clone)]
pub struct Api {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    address: SocketAddr,
    token: String,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The body; null where there was none, a string where it was no JSON.
    pub body: Value,
    /// The body as it came.
    pub bytes: Bytes,
}

impl Api {
    /// A client without a token.
    pub fn new(address: SocketAddr, authority: &Authority) -> Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(authority.client()?)
            .https_only()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, address, token: String::new() })
    }

    /// The same with this token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// One request; whatever is answered is an answer.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let exchange = async {
            let mut request =
                Request::builder().method(method).uri(format!("https://{}/v1/{path}", self.address));
            if !self.token.is_empty() {
                request = request.header("X-Vault-Token", &self.token);
            }
            let answer = self.client.request(request.body(Full::new(body.into()))?).await?;
            let status = answer.status().as_u16();
            let bytes = answer.into_body().collect().await?.to_bytes();
            let body = if bytes.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(&bytes)
                    .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()))
            };
            anyhow::Ok(Answer { status, body, bytes })
        };
        timeout(LIMIT, exchange).await.with_context(|| path.to_owned())?.with_context(|| path.to_owned())
    }

    /// A GET that must succeed.
    pub async fn read(&self, path: &str) -> Result<Value> {
        succeeded(path, self.send(Method::GET, path, Bytes::new()).await?)
    }

    /// A POST that must succeed.
    pub async fn write(&self, path: &str, body: &Value) -> Result<Value> {
        succeeded(path, self.send(Method::POST, path, body.to_string()).await?)
    }

    /// A DELETE that must succeed.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        succeeded(path, self.send(Method::DELETE, path, Bytes::new()).await?)
    }

    /// The names beneath a path; none where there are none.
    pub async fn list(&self, path: &str) -> Result<Vec<String>> {
        let method = Method::from_bytes(b"LIST")?;
        let answer = self.send(method, path, Bytes::new()).await?;
        if answer.status == 404 {
            return Ok(Vec::new());
        }
        let body = succeeded(path, answer)?;
        let keys = body.pointer("/data/keys").and_then(Value::as_array).context("a list of keys")?;
        Ok(keys.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }
}

fn succeeded(path: &str, answer: Answer) -> Result<Value> {
    let Answer { status, body, .. } = answer;
    // Errors have no secrets in them; bodies of success may.
    ensure!((200..300).contains(&status), "{path}: {status}: {body}");
    Ok(body)
}
