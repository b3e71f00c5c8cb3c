//! HTTP to the servers of one store: one connection for everybody, tokens in headers, redirects never followed.

mod request;
mod response;
mod socket;
mod trouble;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use super::address::{Resting, Server};
use super::answer::Reply;
use super::config::Settings;
use crate::Error;
use crate::clock::Clock;
use crate::identity::channel::{client_config, client_config_as, roots};
use crate::identity::reread::Reread;

use request::request;
pub(super) use request::{Call, Credential, json_body, sensitive};
use response::read;
pub(super) use socket::{Socket, Unheard};
use trouble::{Trouble, unsent};

/// How long connecting to one server may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How often an idle connection is tried, so that a dead one is found before it is needed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Answers 412 (the state is not on this node yet) are asked again this often, after pauses that double.
const BEHIND: (u32, Duration) = (4, Duration::from_millis(50));
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
        let mut left: VecDeque<&Server> = self.servers.iter().collect();
        let mut named = false;
        while let Some(server) = left.pop_front() {
            let admitted = server.admit(self.clock.now(), self.timeout);
            // One that another has just named as the active one is asked, whatever it did before.
            if let Err(Resting { problem, for_another }) = admitted
                && !named
            {
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
                Err(Trouble { problem, perhaps_done, retry_after, sent_to }) => {
                    server.failed(self.clock.now(), &problem);
                    problems.push(format!("{}: {problem}", server.address));
                    wait(retry_after);
                    if perhaps_done && !call.repeatable {
                        break;
                    }
                    let active = sent_to.and_then(|origin| self.resting_at(&origin)).filter(|_| !named);
                    if let Some(active) = active {
                        (named, left) = (true, VecDeque::from([active]));
                    }
                }
            }
        }
        Err(self.unavailable(problems.join("; "), retry_after))
    }

    /// The server at an origin that is among ours, if it is left alone for now.
    fn resting_at(&self, origin: &str) -> Option<&Server> {
        let now = self.clock.now();
        self.servers.iter().find(|server| server.address.is_at(origin) && server.is_resting(now))
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
                ..Trouble::before(unsent(&error))
            })?;
            read(response).await
        };
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or_else(|_| {
            Err(Trouble::midway(format!("no answer within {} s", self.timeout.as_secs())))
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
