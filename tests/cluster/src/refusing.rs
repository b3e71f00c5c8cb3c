//! An API server that refuses: for a while every connection of a pod to the API server's address ends at a server of ours,
//! which shows the same certificate and has one answer for everything. Kubelet, the controllers and the tests come from
//! the node itself, and notice nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::layout::{API_ADDRESS, Files, PODS};
use crate::tools::installed;

/// Where it listens, at every address of the node.
const PORT: u16 = 6443;
/// Two questions may cross each other's answers on the way.
const CROSSING: Duration = Duration::from_secs(1);

/// The one answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
    /// The body: an object of kind `Status`, or a plain text.
    pub body: String,
}

/// One question.
#[derive(Debug, Clone)]
pub struct Call {
    /// When it came.
    pub at: Instant,
    /// The pod's address.
    pub from: IpAddr,
    /// What the client calls itself.
    pub agent: String,
    /// Method and path.
    pub what: String,
}

type Calls = Arc<Mutex<Vec<Call>>>;

/// For as long as it is kept, pods are refused.
#[derive(Debug)]
pub struct Refusing {
    calls: Calls,
    // Removed first: what comes then comes to the real one.
    _rules: Rules,
    _serving: JoinSet<()>,
}

impl Refusing {
    /// Puts it between the pods and the API server, and cuts their connections as soon as they are used.
    pub async fn start(files: &Files, answer: Answer) -> Result<Self> {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let chain = CertificateDer::pem_file_iter(files.pki("apiserver.crt"))?.collect::<Result<_, _>>()?;
        let mut config = builder
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(files.pki("apiserver.key"))?)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
        let calls = Calls::default();
        let mut serving = JoinSet::new();
        let seen = Arc::clone(&calls);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, from)) = listener.accept().await {
                let (acceptor, answer, seen) = (acceptor.clone(), answer.clone(), Arc::clone(&seen));
                connections.spawn(async move {
                    // What breaks on a connection is the client's to notice.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(|request| {
                        keep(&seen, from, &request);
                        std::future::ready(say(&answer))
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    http.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Ok(Self { calls, _rules: Rules::new()?, _serving: serving })
    }

    /// What it was asked so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn keep(calls: &Calls, from: SocketAddr, request: &Request<Incoming>) {
    let agent = request.headers().get(USER_AGENT).map(HeaderValue::to_str);
    let call = Call {
        at: Instant::now(),
        from: from.ip(),
        agent: agent.and_then(Result::ok).unwrap_or_default().to_owned(),
        what: format!("{} {}", request.method(), request.uri().path()),
    };
    calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
}

fn say(answer: &Answer) -> http::Result<Response<Full<Bytes>>> {
    let kind = if answer.body.starts_with('{') { "application/json" } else { "text/plain; charset=utf-8" };
    let mut response = Response::builder().status(answer.status).header(CONTENT_TYPE, kind);
    if let Some(wait) = answer.retry_after {
        response = response.header(RETRY_AFTER, wait.as_secs());
    }
    response.body(Full::from(answer.body.clone()))
}

/// The most often that one pod has asked the same thing.
pub fn most(calls: &[Call]) -> usize {
    let same = |one: &&Call, other: &Call| one.from == other.from && one.what == other.what;
    calls.iter().map(|call| calls.iter().filter(|one| same(one, call)).count()).max().unwrap_or_default()
}

/// Pairs of the same question by the same pod that are closer to each other than they were told to be. That they are
/// far apart depends on no machine's speed.
pub fn hasty(calls: &[Call], wait: Duration) -> Vec<String> {
    let mut found = Vec::new();
    for (number, call) in calls.iter().enumerate() {
        let earlier = calls.iter().take(number).rev();
        let Some(before) = earlier.into_iter().find(|one| one.from == call.from && one.what == call.what)
        else {
            continue;
        };
        let between = call.at.duration_since(before.at);
        if between > CROSSING && between < wait {
            found.push(format!("{} {} by {} after {between:?}", call.from, call.what, call.agent));
        }
    }
    found
}

/// The rules of the node's packet filter that lead pods here. They go with it.
#[derive(Debug)]
struct Rules;

impl Rules {
    fn new() -> Result<Self> {
        // From here on whatever fails takes all of them away again.
        let rules = Self;
        for rule in all() {
            iptables("--insert", &rule)?;
        }
        Ok(rules)
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        for rule in all() {
            // One that was never made can't be removed.
            iptables("--delete", &rule).ok();
        }
    }
}

/// New connections end here; those from before, whose packets still go to the real one, are cut.
fn all() -> [String; 2] {
    let to = format!("--source {PODS} --destination {API_ADDRESS} --protocol tcp --dport 443");
    [
        format!("nat PREROUTING {to} --jump REDIRECT --to-ports {PORT}"),
        format!("filter INPUT {to} --jump REJECT --reject-with tcp-reset"),
    ]
}

fn iptables(how: &str, rule: &str) -> Result<()> {
    let mut words = rule.split(' ');
    let table = words.next().unwrap_or_default();
    let mut command = Command::new(installed("iptables")?);
    let output = command.args(["--wait", "--table", table, how]).args(words).output()?;
    ensure!(
        output.status.success(),
        "iptables {how} {rule}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_too_soon_is_found() {
        let start = Instant::now();
        let call = |at: u64, from: u8, what: &str| Call {
            at: start + Duration::from_millis(at),
            from: IpAddr::from([10, 244, 0, from]),
            agent: "countersign-agent/0.1.0 (agent)".to_owned(),
            what: what.to_owned(),
        };
        let calls = [
            call(0, 1, "GET /a"),
            // Another pod, another question, and one that was on its way already.
            call(3_000, 2, "GET /a"),
            call(3_000, 1, "GET /b"),
            call(3_500, 1, "GET /b"),
            call(8_000, 1, "GET /a"),
            call(15_000, 1, "GET /a"),
        ];
        assert_eq!(
            hasty(&calls, Duration::from_secs(8)),
            ["10.244.0.1 GET /a by countersign-agent/0.1.0 (agent) after 7s"]
        );
        assert_eq!(most(&calls), 3);
        assert_eq!(most(&[]), 0);
    }
}
