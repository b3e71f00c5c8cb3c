//! A server that lies: it speaks TLS and as much HTTP/1.1 as it wants to, answers as a script has it, and keeps
//! every request. For what a real Vault can't be made to do, and for servers there is no package of.

mod clients;
mod request;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::authority::{Authority, Certificate};
use countersign_tests::node::free_address;

pub use request::Request;

/// What is answered.
#[derive(Debug, Clone)]
pub enum Lie {
    /// These bytes, as they are, and the connection is closed.
    Bytes(Vec<u8>),
    /// These bytes, one at a time with a pause before each.
    Slowly(Vec<u8>, Duration),
    /// Nothing, ever.
    Silence,
}

impl Lie {
    /// A whole answer with a body of JSON.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::answer(status, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// A whole answer.
    pub fn answer(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        Self::Bytes(answer(status, headers, body))
    }
}

/// The bytes of a whole answer.
pub fn answer(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let first = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\n", body.len());
    let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    [first.as_bytes(), headers.concat().as_bytes(), b"Connection: close\r\n\r\n", body].concat()
}

/// What is to be answered; nothing for what an honest server would say.
type Script = Arc<dyn Fn(&Request) -> Option<Lie> + Send + Sync>;

#[derive(Default)]
struct Shared {
    script: Mutex<Option<Script>>,
    seen: Mutex<Vec<Request>>,
}

/// The server. It ends when it is dropped.
pub struct Liar {
    address: SocketAddr,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

impl std::fmt::Debug for Liar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Liar").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Liar {
    /// One with a certificate for its address.
    pub async fn start(authority: &Authority) -> Result<Self> {
        let address = free_address()?;
        Self::listen(address, Some(&authority.certificate_at(address)?)).await
    }

    /// One with this certificate, whatever is in it.
    pub async fn with_certificate(certificate: &Certificate) -> Result<Self> {
        Self::listen(free_address()?, Some(certificate)).await
    }

    /// One that speaks in the clear where TLS is expected.
    pub async fn in_the_clear() -> Result<Self> {
        Self::listen(free_address()?, None).await
    }

    async fn listen(address: SocketAddr, certificate: Option<&Certificate>) -> Result<Self> {
        let acceptor = match certificate {
            Some(certificate) => {
                let server = certificate.server_for(Arc::new(clients::Asks::new()))?;
                Some(TlsAcceptor::from(Arc::new(server)))
            }
            None => None,
        };
        let listener = TcpListener::bind(address).await?;
        let shared = Arc::new(Shared::default());
        let mut serving = JoinSet::new();
        let known = Arc::clone(&shared);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, shared) = (acceptor.clone(), Arc::clone(&known));
                connections.spawn(async move {
                    // What breaks on a connection is the client's to notice.
                    match acceptor {
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                                let shown = shown.map(|leaf| leaf.to_vec());
                                serve(stream, shown, &shared).await.ok();
                            }
                        }
                        None => drop(serve(stream, None, &shared).await),
                    }
                });
            }
        });
        Ok(Self { address, shared, _serving: serving })
    }

    /// From now on this is what it says; what the script has nothing for is answered honestly.
    pub fn says(&self, script: impl Fn(&Request) -> Option<Lie> + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(script));
    }

    /// From now on it is honest.
    pub fn repents(&self) {
        *self.shared.script.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Every request so far; it remembers none of them any longer.
    pub fn seen(&self) -> Vec<Request> {
        std::mem::take(&mut *self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Number of requests since [`Liar::seen`] for a path.
    pub fn count(&self, path: &str) -> usize {
        let seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|request| request.path() == path).count()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    certificate: Option<Vec<u8>>,
    shared: &Shared,
) -> Result<()> {
    let request = match Request::read(&mut stream).await {
        Ok(Some(request)) => Request { certificate, ..request },
        Ok(None) => return Ok(()),
        // Such as the hello of TLS where none is spoken: the usual servers say so in their own way.
        Err(_) => return Ok(stream.write_all(&answer(400, &[], b"not a request")).await?),
    };
    let script = shared.script.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let lie = script.and_then(|script| script(&request)).unwrap_or_else(|| honest(&request));
    shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    match lie {
        Lie::Bytes(bytes) => stream.write_all(&bytes).await?,
        Lie::Slowly(bytes, pause) => {
            for byte in bytes {
                tokio::time::sleep(pause).await;
                stream.write_all(&[byte]).await?;
                stream.flush().await?;
            }
        }
        Lie::Silence => std::future::pending().await,
    }
    stream.flush().await?;
    Ok(stream.shutdown().await?)
}

/// The token an honest answer gives.
pub const TOKEN: &str = "hvs.the-token-of-a-liar";
/// The value in every secret of an honest answer.
pub const VALUE: &str = "the value of a liar";

/// What Vault would answer to those requests that a KV secret needs.
pub fn honest(request: &Request) -> Lie {
    let path = request.path();
    let body = if path.ends_with("/login") {
        json!({"request_id": "login", "auth": {
            "client_token": TOKEN, "accessor": "accessor-of-a-liar", "policies": ["default"],
            "token_policies": ["default"], "metadata": {"role": "r"}, "lease_duration": 3600, "renewable": true,
            "entity_id": "entity", "token_type": "service", "orphan": true, "num_uses": 0,
        }})
    } else if path.starts_with("/v1/sys/internal/ui/mounts/") {
        json!({"request_id": "mount", "data": {"type": "kv", "path": "kv/", "options": {"version": "2"}}})
    } else if path == "/v1/sys/health" {
        json!({"initialized": true, "sealed": false, "standby": false, "version": "1.21.0"})
    } else if path.starts_with("/v1/kv/data/") {
        json!({
            "request_id": "read", "lease_id": "", "renewable": false, "lease_duration": 0,
            "data": {"data": {"password": VALUE}, "metadata": {
                "version": 1, "created_time": "2026-01-01T00:00:00Z", "deletion_time": "", "destroyed": false,
                "custom_metadata": null,
            }},
            "wrap_info": null, "warnings": null, "auth": null,
        })
    } else if path == "/v1/auth/token/revoke-self" {
        return Lie::answer(204, &[], b"");
    } else {
        return Lie::json(404, &json!({"errors": []}));
    };
    Lie::json(200, &body)
}
