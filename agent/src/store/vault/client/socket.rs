//! A stream of events: a WebSocket (RFC 6455) on a connection of its own, to the same servers and under the same rules as
//! every other request.

use std::sync::Arc;

use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode, Uri};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Error as SocketError;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use zeroize::Zeroizing;

use super::request::{Call, Credential, request};
use super::response::redirected;
use super::{Client, Trust};
use crate::identity::channel::client_config;
use crate::secret::Secret;
use crate::store::vault::address::{Resting, Server};
use crate::store::vault::answer::Reply;
use crate::store::vault::config::Namespace;
use crate::store::vault::events::LISTENING;

/// What is listened for: all that concerns key-value secrets.
const PATH: &str = "sys/events/subscribe/kv*?json=true";
/// The longest event looked at. They hold names and numbers.
const LONGEST: usize = 64 << 10;
/// There may be hundreds of streams, which say little.
const BUFFER: usize = 4 << 10;

static SOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
static SOCKET_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");

pub(in crate::store::vault) trait Connection:
    AsyncRead + AsyncWrite + Send + Unpin
{
}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A stream that is open.
pub(in crate::store::vault) type Socket = WebSocketStream<Box<dyn Connection>>;

/// Why none was opened, in words.
#[derive(Debug)]
pub(in crate::store::vault) enum Unheard {
    /// The server has no events.
    NotServed(String),
    /// The token's policies do not allow it.
    Forbidden(String),
    /// No server answered with a meaning.
    Trouble(String),
}

impl Client {
    /// Opens a stream of the events in `namespace` that `token` may hear of, at the first server that serves it.
    pub(in crate::store::vault) async fn listen(
        &self,
        namespace: &Namespace,
        token: &Secret,
    ) -> Result<Socket, Unheard> {
        let mut problems = Vec::new();
        for server in &self.servers {
            if let Err(Resting { problem, .. }) = server.admit(self.clock.now(), self.timeout) {
                problems.push(format!("{}: {problem}", server.address));
                continue;
            }
            let opening = tokio::time::timeout(self.timeout, self.open(server, namespace, token));
            let opened = opening.await.unwrap_or_else(|_| {
                Err(Unheard::Trouble(format!("no answer within {} s", self.timeout.as_secs())))
            });
            match opened {
                Err(Unheard::Trouble(problem)) => {
                    server.failed(self.clock.now(), &problem);
                    problems.push(format!("{}: {problem}", server.address));
                }
                other => {
                    server.served();
                    return other;
                }
            }
        }
        Err(Unheard::Trouble(problems.join("; ")))
    }

    async fn open(&self, server: &Server, namespace: &Namespace, token: &Secret) -> Result<Socket, Unheard> {
        let request = upgrade(server, namespace, token)
            .ok_or_else(|| Unheard::Trouble("the request can't be written".to_owned()))?;
        let connection = self.connect(server, request.uri()).await.map_err(Unheard::Trouble)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .max_message_size(Some(LONGEST))
            .max_frame_size(Some(LONGEST));
        match client_async_with_config(request, connection, Some(config)).await {
            Ok((socket, _)) => Ok(socket),
            Err(SocketError::Http(response)) => Err(refused(*response, token)),
            Err(error) => Err(Unheard::Trouble(format!("it does not open a stream: {error}"))),
        }
    }

    /// A connection as every other request has it, that nobody else uses.
    async fn connect(&self, server: &Server, uri: &Uri) -> Result<Box<dyn Connection>, String> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if server.address.tls() { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let Trust::File(file) = &self.trusted else { return Ok(Box::new(stream)) };
        if !server.address.tls() {
            return Ok(Box::new(stream));
        }
        let trusted = file.current().await.map_err(|error| error.to_string())?;
        let mut config =
            client_config(trusted.roots.clone(), self.clock).map_err(|error| error.to_string())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?,
        };
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        Ok(Box::new(stream.map_err(|error| error.to_string())?))
    }
}

/// The request that asks for the stream; none if a piece of it can stand in no request.
fn upgrade(server: &Server, namespace: &Namespace, token: &Secret) -> Option<Request<()>> {
    let call = Call {
        method: &Method::GET,
        path: PATH,
        namespace,
        credential: Credential::Token(token),
        wrap: None,
        body: None,
        repeatable: true,
    };
    let (mut parts, _) = request(server, call)?.into_parts();
    let host = parts.uri.authority()?.as_str().parse().ok()?;
    // The library wants to read it so; on the wire it does not appear.
    let mut uri = parts.uri.into_parts();
    uri.scheme = Some(if server.address.tls() { "wss" } else { "ws" }.parse().ok()?);
    parts.uri = Uri::from_parts(uri).ok()?;
    parts.headers.insert(HOST, host);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    parts.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    parts.headers.insert(&SOCKET_VERSION, HeaderValue::from_static("13"));
    parts.headers.insert(&SOCKET_KEY, generate_key().parse().ok()?);
    Some(Request::from_parts(parts, ()))
}

/// What an answer means that is no stream.
fn refused(response: Response<Option<Vec<u8>>>, token: &Secret) -> Unheard {
    let (parts, body) = response.into_parts();
    let status = parts.status;
    if status.is_redirection() {
        return Unheard::Trouble(redirected(status, &parts.headers));
    }
    let body = Zeroizing::new(body.unwrap_or_default());
    let reply = Reply { status, body, retry_after: None, inline_login_failed: false };
    let said = reply.message(&[token]);
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let code = status.as_u16();
    match status {
        StatusCode::FORBIDDEN => Unheard::Forbidden(format!(
            "the server does not let this identity listen ({code}{said}); its policy needs {LISTENING}"
        )),
        _ if status.is_client_error() && code != 429 && code < 472 => {
            Unheard::NotServed(format!("it answers {code}{said}"))
        }
        _ => Unheard::Trouble(format!("it answers {code}{said}")),
    }
}
