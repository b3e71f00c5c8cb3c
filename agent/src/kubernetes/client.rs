//! HTTPS to the API server.

use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Clock;
use crate::identity::channel::{client_config, innermost, roots};
use crate::identity::reread::{self, Reread};
use crate::kubernetes::args::Server;
use crate::kubernetes::error::{ApiError, message};
use crate::kubernetes::quiet::Quiet;
use crate::secret::Secret;

/// How long one call may take: the agent waits ten seconds for all that the issuer does.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// The longest answer: a `ConfigMap` of 1 MiB, and what the API server writes around it.
pub(crate) const MAX_ANSWER: usize = 4 << 20;
/// The longest wait the API server is granted between two calls.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// A connection that is waited on is tried after this: a watch says nothing for minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// How a patch is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patch {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
}

impl Patch {
    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
        }
    }
}

/// Which of the two processes asks, as the API server's audit log shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The agent of a node.
    Agent,
    /// A replica of the issuer.
    Issuer,
}

impl Caller {
    /// Product, version and comment of RFC 9110 §10.1.5.
    fn user_agent(self) -> &'static str {
        match self {
            Self::Agent => concat!("countersign-agent/", env!("CARGO_PKG_VERSION"), " (agent)"),
            Self::Issuer => concat!("countersign-agent/", env!("CARGO_PKG_VERSION"), " (issuer)"),
        }
    }
}

/// A request before it is sent.
struct Question<'a> {
    method: Method,
    path: &'a str,
    media_type: &'static str,
    body: Vec<u8>,
    /// In the body, and not to be seen in an error.
    secret: Option<&'a Secret>,
}

/// A client of the API server; connections are kept and shared.
pub(crate) struct Api {
    url: Uri,
    caller: Caller,
    /// Made anew when the certificate authority's file changes.
    client: Reread<HttpClient>,
    token: Reread<Secret>,
    quiet: Quiet,
    clock: Clock,
}

impl Api {
    /// A client; it connects when it is first used.
    pub(crate) fn new(server: Server, caller: Caller, clock: Clock) -> Self {
        Self {
            url: server.url,
            caller,
            client: Reread::new("certificate authority", server.ca, clock, move |pem| {
                http_client(pem, clock)
            }),
            token: Reread::new("API server token", server.token, clock, reread::token),
            quiet: Quiet::default(),
            clock,
        }
    }

    /// Time.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Reads what is at `path`, query included.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.ask(Question::new(Method::GET, path)).await
    }

    /// Makes a new object in the collection at `path`. `secret` is what in `body` no error may show.
    pub(crate) async fn create<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        secret: Option<&Secret>,
    ) -> Result<T, ApiError> {
        let question = Question { secret, ..Question::new(Method::POST, path) };
        self.ask(self.with_body(question, "application/json", body)?).await
    }

    /// Changes the object at `path`.
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        kind: Patch,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let question = Question::new(Method::PATCH, path);
        self.ask(self.with_body(question, kind.media_type(), body)?).await
    }

    /// Opens the stream of events at `path`; its head has to come in time, its end may take as long as it likes.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming, ApiError> {
        let opened = async {
            let question = Question::new(Method::GET, path);
            let answer = self.send(&question).await?;
            if answer.status().is_success() {
                return Ok(answer.into_body());
            }
            Err(self.refused(answer, &question).await)
        };
        self.in_time(opened).await
    }

    fn with_body<'a>(
        &self,
        question: Question<'a>,
        media_type: &'static str,
        body: &impl Serialize,
    ) -> Result<Question<'a>, ApiError> {
        let body = serde_json::to_vec(body).map_err(|_| self.unwritable())?;
        Ok(Question { media_type, body, ..question })
    }

    async fn ask<T: DeserializeOwned>(&self, question: Question<'_>) -> Result<T, ApiError> {
        let body = self
            .in_time(async {
                let answer = self.send(&question).await?;
                if !answer.status().is_success() {
                    return Err(self.refused(answer, &question).await);
                }
                self.body(answer).await
            })
            .await?;
        serde_json::from_slice(&body).map_err(|_| self.unreadable("it answered something that can't be read"))
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        match tokio::time::timeout(DEADLINE, call).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::Slow { server: self.server(), limit: DEADLINE }),
        }
    }

    async fn send(&self, question: &Question<'_>) -> Result<Response<Incoming>, ApiError> {
        if let Some(refusal) = self.quiet.holds(self.clock.now()) {
            return Err(refusal);
        }
        let token = self.token.current().await.map_err(ApiError::Own)?;
        let client = self.client.current().await.map_err(ApiError::Own)?;
        let mut parts = self.url.clone().into_parts();
        parts.path_and_query = PathAndQuery::try_from(question.path).ok();
        let mut bearer =
            HeaderValue::from_bytes(&[b"Bearer ", token.expose()].concat()).map_err(|_| self.unwritable())?;
        bearer.set_sensitive(true);
        let mut request = Request::builder()
            .method(&question.method)
            .uri(Uri::from_parts(parts).map_err(|_| self.unwritable())?)
            .header(USER_AGENT, self.caller.user_agent())
            .header(AUTHORIZATION, bearer)
            .header(ACCEPT, "application/json");
        if !question.media_type.is_empty() {
            request = request.header(CONTENT_TYPE, question.media_type);
        }
        let request =
            request.body(Full::new(Bytes::from(question.body.clone()))).map_err(|_| self.unwritable())?;
        client.request(request).await.map_err(|error| self.broken(&error))
    }

    async fn body(&self, answer: Response<Incoming>) -> Result<Bytes, ApiError> {
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok(body.map_err(|_| self.unreadable("its answer broke off or is too long"))?.to_bytes())
    }

    async fn refused(&self, answer: Response<Incoming>, question: &Question<'_>) -> ApiError {
        let (status, retry_after) = (answer.status(), retry_after(answer.headers()));
        let body = match self.body(answer).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        let secret = question.secret.map(Secret::expose).unwrap_or_default();
        let own = self.token.current().await.ok();
        let message = message(&body, &[secret, own.as_deref().map(Secret::expose).unwrap_or_default()]);
        let refusal = ApiError::Refused { server: self.server(), status, message, retry_after };
        self.quiet.note(&refusal, self.clock.now());
        refusal
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> ApiError {
        let problem = innermost(error, "of this machine and the API server's");
        ApiError::Unreachable { server: self.server(), problem }
    }

    pub(super) fn unreadable(&self, problem: &str) -> ApiError {
        ApiError::Unreadable { server: self.server(), problem: problem.to_owned() }
    }

    fn unwritable(&self) -> ApiError {
        self.unreadable("the question can't be written")
    }

    /// `HOST:PORT`.
    pub(crate) fn server(&self) -> String {
        self.url.authority().map(ToString::to_string).unwrap_or_default()
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Api({})", self.server())
    }
}

impl<'a> Question<'a> {
    fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, media_type: "", body: Vec::new(), secret: None }
    }
}

/// The delay a refusal asks for; a date is not looked at, the API server sends seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

fn http_client(pem: &[u8], clock: Clock) -> Result<HttpClient, String> {
    let config = client_config(roots(pem)?, clock).map_err(|error| format!("can't be used: {error}"))?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(DEADLINE));
    http.set_keepalive(Some(KEEP_ALIVE));
    http.set_keepalive_interval(Some(KEEP_ALIVE / 3));
    http.set_keepalive_retries(Some(3));
    let https =
        HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .build(https))
}
