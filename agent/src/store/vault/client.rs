//! HTTP to the servers of one store: one connection for everybody, tokens in headers, redirects never followed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::address::{Resting, Server};
use super::answer::Reply;
use super::config::{Namespace, Settings};
use crate::Error;
use crate::clock::Clock;
use crate::identity::X509Svid;
use crate::identity::channel::{client_config, client_config_as, roots};
use crate::identity::reread::Reread;
use crate::secret::Secret;

/// The longest answer looked at: the server's own limit for a secret is 1 MiB.
const MAX_BODY: usize = 4 << 20;
/// How long connecting to one server may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How often an idle connection is tried, so that a dead one is found before it is needed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Answers 412 (the state is not on this node yet) are asked again this often, after pauses that double.
const BEHIND: (u32, Duration) = (4, Duration::from_millis(50));
/// A `Retry-After` longer than this is taken for this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Marks a request as made on purpose, which a proxy may require.
static REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
static TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
static NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
static WRAP_TTL: HeaderName = HeaderName::from_static("x-vault-wrap-ttl");
static INLINE_FAILED: HeaderName = HeaderName::from_static("x-vault-inline-auth-failed");

type HttpClient = Pool<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The roots the servers are known by, and the connections made with them.
struct Trusted {
    roots: RootCertStore,
    client: HttpClient,
}

/// Client of one store's servers.
pub(super) struct Client {
    store: Arc<str>,
    servers: Vec<Server>,
    trusted: Trust,
    server_name: Option<ServerName<'static>>,
    timeout: Duration,
    clock: Clock,
}

enum Trust {
    /// Made anew when the roots' file changes.
    File(Reread<Trusted>),
    /// Plain HTTP to loopback only.
    Nobody(Trusted),
}

/// One request.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) method: &'a Method,
    /// After `/v1/`, with its query; already fit for a URL.
    pub(super) path: &'a str,
    pub(super) namespace: &'a Namespace,
    pub(super) credential: Credential<'a>,
    /// Ask for a wrapped answer that lives so many seconds.
    pub(super) wrap: Option<u64>,
    pub(super) body: Option<&'a Bytes>,
    /// Making it twice does no harm.
    pub(super) repeatable: bool,
}

/// What a request is authorized by.
#[derive(Clone, Copy)]
pub(super) enum Credential<'a> {
    /// Nothing: a login brings its own in the body.
    None,
    /// A token.
    Token(&'a Secret),
    /// A JWT-SVID in the Authorization header (`auth/spiffe`).
    Bearer(&'a Secret),
    /// The client certificate of a connection made for this one request.
    Certificate(&'a X509Svid),
    /// Headers that log in and read at once.
    Inline(&'a HeaderMap),
}

/// A JSON body whose memory is overwritten when the last request with it is over.
pub(super) fn json_body(value: &impl serde::Serialize) -> Option<Bytes> {
    let text = serde_json::to_vec(value).ok()?;
    Some(Bytes::from_owner(Zeroizing::new(text)))
}

/// Why one server gave no answer with a meaning.
struct Trouble {
    problem: String,
    /// The request may have been carried out.
    perhaps_done: bool,
    retry_after: Option<Duration>,
}

impl Trouble {
    fn before(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), perhaps_done: false, retry_after: None }
    }
}

impl Client {
    pub(super) fn new(store: Arc<str>, settings: &Settings, clock: Clock) -> Result<Self, Error> {
        let server_name = settings.server_name.clone();
        let trusted = if let Some(path) = &settings.ca_file {
            let name = server_name.clone();
            Trust::File(Reread::new("certificate authority", path, clock, move |pem| {
                let roots = roots(pem)?;
                let config = client_config(roots.clone(), clock).map_err(|error| error.to_string())?;
                Ok(Trusted { roots, client: http_client(config, name.clone(), true) })
            }))
        } else {
            let roots = RootCertStore::empty();
            let config = client_config(roots.clone(), clock).map_err(|error| Error::Unusable {
                store: store.to_string(),
                problem: format!("TLS can't be configured: {error}"),
            })?;
            Trust::Nobody(Trusted { roots, client: http_client(config, None, true) })
        };
        let servers = settings.addresses.iter().cloned().map(Server::new).collect();
        Ok(Self { store, servers, trusted, server_name, timeout: settings.timeout, clock })
    }

    /// Makes one request of the first server that answers it with a meaning. Every other outcome is
    /// [`Error::StoreUnavailable`], with what each server did.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Reply, Error> {
        let mut problems = Vec::new();
        let mut retry_after = None;
        let mut wait = |after: Option<Duration>| {
            retry_after = match (retry_after, after) {
                (None, after) => after,
                (before, None) => before,
                (Some(before), Some(after)) => Some(std::cmp::min::<Duration>(before, after)),
            };
        };
        for server in &self.servers {
            if let Err(Resting { problem, for_another }) = server.admit(self.clock.now(), self.timeout) {
                let seconds = for_another.as_secs() + 1;
                problems.push(format!("{}: {problem}; it is left alone for {seconds} s", server.address));
                wait(Some(for_another));
                continue;
            }
            match self.ask(server, call).await {
                Ok(reply) => {
                    server.served();
                    return Ok(reply);
                }
                Err(Trouble { problem, perhaps_done, retry_after }) => {
                    server.failed(self.clock.now(), &problem);
                    problems.push(format!("{}: {problem}", server.address));
                    wait(retry_after);
                    if perhaps_done && !call.repeatable {
                        break;
                    }
                }
            }
        }
        Err(self.unavailable(problems.join("; "), retry_after))
    }

    pub(super) fn unavailable(&self, problem: String, retry_after: Option<Duration>) -> Error {
        Error::StoreUnavailable { store: self.store.to_string(), problem, retry_after }
    }

    /// Asks one server, and again while it says that it is a moment behind.
    async fn ask(&self, server: &Server, call: Call<'_>) -> Result<Reply, Trouble> {
        let (tries, mut pause) = BEHIND;
        for _ in 1..tries {
            let reply = self.ask_once(server, call).await?;
            if reply.status != StatusCode::PRECONDITION_FAILED {
                return Ok(reply);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        let reply = self.ask_once(server, call).await?;
        if reply.status == StatusCode::PRECONDITION_FAILED {
            return Err(Trouble::before("it is behind the active node and does not catch up (412)"));
        }
        Ok(reply)
    }

    async fn ask_once(&self, server: &Server, call: Call<'_>) -> Result<Reply, Trouble> {
        let exchange = async {
            let request =
                request(server, call).ok_or_else(|| Trouble::before("the request can't be written"))?;
            let trusted = match &self.trusted {
                Trust::File(file) => {
                    Some(file.current().await.map_err(|error| Trouble::before(error.to_string()))?)
                }
                Trust::Nobody(_) => None,
            };
            let trusted = match (&trusted, &self.trusted) {
                (Some(trusted), _) => &**trusted,
                (None, Trust::Nobody(trusted)) => trusted,
                (None, Trust::File(_)) => return Err(Trouble::before("no roots")),
            };
            let sent = match call.credential {
                Credential::Certificate(svid) => {
                    let config =
                        client_config_as(trusted.roots.clone(), svid, self.clock).map_err(|error| {
                            Trouble::before(format!("the X.509-SVID can't be shown: {error}"))
                        })?;
                    http_client(config, self.server_name.clone(), false).request(request).await
                }
                Credential::None | Credential::Token(_) | Credential::Bearer(_) | Credential::Inline(_) => {
                    trusted.client.request(request).await
                }
            };
            let response = sent.map_err(|error| Trouble {
                perhaps_done: !error.is_connect(),
                problem: unsent(&error),
                retry_after: None,
            })?;
            read(response).await
        };
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or_else(|_| {
            Err(Trouble {
                problem: format!("no answer within {} s", self.timeout.as_secs()),
                perhaps_done: true,
                retry_after: None,
            })
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.store)
    }
}

fn http_client(config: ClientConfig, server_name: Option<ServerName<'static>>, pooled: bool) -> HttpClient {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT));
    // Plain HTTP is for addresses on loopback; the configuration has no others.
    let mut https = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
    if let Some(name) = server_name {
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let https = https.enable_all_versions().wrap_connector(http);
    Pool::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(if pooled { 4 } else { 0 })
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(CONNECT)
        .build(https)
}

fn request(server: &Server, call: Call<'_>) -> Option<Request<Full<Bytes>>> {
    let uri: Uri = format!("{}/v1/{}", server.address, call.path).parse().ok()?;
    let mut request = Request::builder().method(call.method).uri(uri);
    let headers = request.headers_mut()?;
    headers.insert(&REQUEST, HeaderValue::from_static("true"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    if let Some(namespace) = call.namespace.header() {
        headers.insert(&NAMESPACE, namespace.parse().ok()?);
    }
    if let Some(seconds) = call.wrap {
        headers.insert(&WRAP_TTL, HeaderValue::from(seconds));
    }
    match call.credential {
        Credential::None | Credential::Certificate(_) => {}
        Credential::Token(token) => {
            headers.insert(&TOKEN, sensitive(token.expose())?);
        }
        Credential::Bearer(jwt) => {
            let bearer = Zeroizing::new([b"Bearer ", jwt.expose()].concat());
            headers.insert(AUTHORIZATION, sensitive(&bearer)?);
        }
        Credential::Inline(login) => headers.extend(login.clone()),
    }
    if call.body.is_some() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    request.body(Full::new(call.body.cloned().unwrap_or_default())).ok()
}

/// A header that stays out of compression tables and out of anybody's Debug.
pub(super) fn sensitive(bytes: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(bytes).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The answer, if it has a meaning: what a server out of service says, and what no such server says, are trouble.
async fn read(response: Response<Incoming>) -> Result<Reply, Trouble> {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
    let inline_login_failed = response.headers().contains_key(&INLINE_FAILED);
    if status.is_redirection() {
        // A token is not sent where somebody points.
        let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).and_then(origin);
        return Err(Trouble::before(format!(
            "it redirects ({status}) to {}; name that server among the addresses, or let standbys forward requests",
            to.as_deref().unwrap_or("elsewhere")
        )));
    }
    let body = collect(response.into_body()).await.map_err(|problem| Trouble {
        problem,
        perhaps_done: true,
        retry_after: None,
    })?;
    let reply = Reply { status, body, retry_after, inline_login_failed };
    if reply.envelope().is_none() {
        let kind = if kind.is_empty() { "something" } else { kind.as_str() };
        return Err(Trouble {
            problem: format!(
                "it answers {status} with {kind} that is not Vault's JSON; is it a Vault or OpenBao server, or a proxy before one?"
            ),
            perhaps_done: true,
            retry_after,
        });
    }
    let out_of_service = |what: &str| {
        let message = reply.message(&[]);
        let message = if message.is_empty() { String::new() } else { format!(": {message}") };
        Err(Trouble {
            problem: format!("{what} ({}){message}", status.as_u16()),
            perhaps_done: false,
            retry_after,
        })
    };
    match status.as_u16() {
        472 => out_of_service("it is the standby of a disaster recovery cluster"),
        473 | 474 => out_of_service("it is a standby that cannot serve this"),
        501 => out_of_service("it is not initialized"),
        503 => out_of_service("it is sealed, in maintenance or overloaded"),
        530 => out_of_service("it was removed from its cluster"),
        _ => Ok(reply),
    }
}

async fn collect(mut body: Incoming) -> Result<Zeroizing<Vec<u8>>, String> {
    let expected = hyper::body::Body::size_hint(&body).exact().and_then(|size| usize::try_from(size).ok());
    let too_long = || format!("its answer is longer than {} MiB", MAX_BODY >> 20);
    if expected.is_some_and(|size| size > MAX_BODY) {
        return Err(too_long());
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected.unwrap_or(4096)));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("its answer broke off: {}", innermost(&error)))?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > MAX_BODY {
            return Err(too_long());
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

/// Seconds, as every server of this kind writes it (RFC 9110 §10.2.3 would also have a date).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// Scheme, host and port of a URL: its path may say more than a message should.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?.as_str().rsplit('@').next()?))
}

/// Why a request could not be made, with what to do where that is known.
fn unsent(error: &hyper_util::client::legacy::Error) -> String {
    let cause = innermost(error);
    let remedy = if cause.contains("InvalidContentType") {
        "; it does not speak TLS: is this its plain HTTP port?"
    } else if cause.contains("UnknownIssuer") || cause.contains("BadSignature") {
        "; its certificate was signed by none of the roots in caFile"
    } else if cause.contains("not valid for name") {
        "; set serverName to a name its certificate has"
    } else if cause.contains("certificate expired") || cause.contains("not valid yet") {
        "; renew it, or look at the clocks"
    } else {
        ""
    };
    format!("{cause}{remedy}")
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}
