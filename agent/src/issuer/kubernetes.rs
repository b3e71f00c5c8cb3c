//! Review by the API server: `TokenReview` of `authentication.k8s.io/v1`.

use std::path::PathBuf;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::identity::channel::{client_config, roots};
use crate::identity::reread::{self, Reread};
use crate::identity::token::glance;
use crate::issuer::refusal::TokenFault;
use crate::issuer::review::{Reviewed, service_account};
use crate::secret::Secret;

/// How long one review may take: the agent waits ten seconds for the whole call.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest answer looked at.
const MAX_ANSWER: usize = 256 * 1024;
/// Longest piece of an API server's message that is handed on.
const MAX_MESSAGE: usize = 200;
/// How far our clock and the API server's may be apart, in seconds, before we refuse on our own.
const LEEWAY: i64 = 60;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Reviews tokens by asking the API server.
pub(crate) struct Kubernetes {
    endpoint: Uri,
    /// Made anew when the certificate authority's file changes.
    client: Reread<HttpClient>,
    token: Reread<Secret>,
    audience: String,
    clock: Clock,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    api_version: &'static str,
    kind: &'static str,
    spec: Spec<'a>,
}

#[derive(Serialize)]
struct Spec<'a> {
    token: &'a str,
    audiences: [&'a str; 1],
}

#[derive(Deserialize)]
struct Answer {
    status: Option<ReviewStatus>,
}

#[derive(Deserialize)]
struct ReviewStatus {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    error: String,
    #[serde(default)]
    audiences: Vec<String>,
    user: Option<User>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: std::collections::BTreeMap<String, Vec<String>>,
}

/// What the API server says when it refuses a request.
#[derive(Deserialize)]
struct ApiStatus {
    #[serde(default)]
    message: String,
}

impl Kubernetes {
    pub(crate) fn new(url: &Uri, ca: PathBuf, token: PathBuf, audience: String, clock: Clock) -> Self {
        let mut parts = url.clone().into_parts();
        parts.path_and_query =
            Some(http::uri::PathAndQuery::from_static("/apis/authentication.k8s.io/v1/tokenreviews"));
        Self {
            // Scheme and authority come from a whole URL, so the parts fit together.
            endpoint: Uri::from_parts(parts).unwrap_or_default(),
            client: Reread::new("certificate authority", ca, clock, move |pem| http_client(pem, clock)),
            token: Reread::new("API server token", token, clock, reread::token),
            audience,
            clock,
        }
    }

    pub(crate) async fn review(&self, token: &Secret) -> Result<Reviewed, TokenFault> {
        let expires = self.look(token)?;
        let answer = match tokio::time::timeout(DEADLINE, self.ask(token)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.unreviewed(&format!("no answer within {} s", DEADLINE.as_secs()))),
        };
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|_| self.unreviewed("it answered something that is no TokenReview"))?;
        let status =
            answer.status.ok_or_else(|| self.unreviewed("it answered a TokenReview without a status"))?;
        self.facts(status, token, expires)
    }

    /// Refuses what the API server would refuse too, without asking it.
    fn look(&self, token: &Secret) -> Result<Option<i64>, TokenFault> {
        let claims = glance(token).ok_or_else(|| TokenFault::Malformed("it is no JWT".to_owned()))?;
        if !claims.aud.contains(&self.audience) {
            return Err(TokenFault::Audience { wanted: self.audience.clone() });
        }
        if claims.exp.is_some_and(|exp| exp.saturating_add(LEEWAY) <= self.clock.unix()) {
            return Err(TokenFault::Expired);
        }
        Ok(claims.exp)
    }

    async fn ask(&self, token: &Secret) -> Result<Bytes, TokenFault> {
        let request = self.question(token).await?;
        let client =
            self.client.current().await.map_err(|error| TokenFault::Unreviewed(error.to_string()))?;
        let answer = client.request(request).await.map_err(|error| self.unreviewed(&innermost(&error)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|_| self.unreviewed("its answer broke off or is too long"))?
            .to_bytes();
        if status.is_success() { Ok(body) } else { Err(self.failed(status, &body, token)) }
    }

    async fn question(&self, token: &Secret) -> Result<Request<Full<Bytes>>, TokenFault> {
        let own = self.token.current().await.map_err(|error| TokenFault::Unreviewed(error.to_string()))?;
        let text = std::str::from_utf8(token.expose())
            .map_err(|_| TokenFault::Malformed("it is no text".to_owned()))?;
        let question = Question {
            api_version: "authentication.k8s.io/v1",
            kind: "TokenReview",
            spec: Spec { token: text, audiences: [&self.audience] },
        };
        let unsendable = || self.unreviewed("the question can't be written");
        let body = serde_json::to_vec(&question).map_err(|_| unsendable())?;
        let mut bearer =
            HeaderValue::from_bytes(&[b"Bearer ", own.expose()].concat()).map_err(|_| unsendable())?;
        bearer.set_sensitive(true);
        Request::builder()
            .method(Method::POST)
            .uri(&self.endpoint)
            .header(AUTHORIZATION, bearer)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| unsendable())
    }

    /// An answer that is no review. Redirects are among them: a token is not sent where a stranger points.
    fn failed(&self, status: StatusCode, body: &[u8], token: &Secret) -> TokenFault {
        let message =
            serde_json::from_slice(body).map(|status: ApiStatus| status.message).unwrap_or_default();
        let message = speakable(&message, token);
        let remedy = match status {
            StatusCode::UNAUTHORIZED => "; the token of --kubernetes-token is not accepted",
            StatusCode::FORBIDDEN => {
                "; bind ClusterRole system:auth-delegator to the issuer's service account"
            }
            _ => "",
        };
        self.unreviewed(&format!(
            "it answered {status}{}{message}{remedy}",
            if message.is_empty() { "" } else { ": " }
        ))
    }

    fn facts(
        &self,
        status: ReviewStatus,
        token: &Secret,
        expires: Option<i64>,
    ) -> Result<Reviewed, TokenFault> {
        if !status.authenticated || !status.error.is_empty() {
            return Err(self.refused(&status.error, token));
        }
        if !status.audiences.contains(&self.audience) {
            return Err(TokenFault::Audience { wanted: self.audience.clone() });
        }
        let malformed = |problem: &str| TokenFault::Malformed(problem.to_owned());
        let user = status.user.ok_or_else(|| malformed("the API server names no user for it"))?;
        let (namespace, name) = service_account(&user.username)
            .ok_or_else(|| malformed("the API server says it is no service account's"))?;
        let extra = |key: &str| match user.extra.get(key).map(Vec::as_slice) {
            Some([one]) if !one.is_empty() => Some(one.clone()),
            Some(_) | None => None,
        };
        let unbound = || malformed("it is bound to no pod");
        Ok(Reviewed {
            namespace: namespace.to_owned(),
            service_account: name.to_owned(),
            pod_name: extra(POD_NAME).ok_or_else(unbound)?,
            pod_uid: extra(POD_UID).ok_or_else(unbound)?,
            node_name: extra(NODE_NAME).ok_or(TokenFault::NoNode)?,
            expires,
        })
    }

    /// The API server's refusal in our words where it can be recognized, in its own where not.
    fn refused(&self, error: &str, token: &Secret) -> TokenFault {
        if error.contains("expired") {
            TokenFault::Expired
        } else if error.contains("audience") {
            TokenFault::Audience { wanted: self.audience.clone() }
        } else if error.is_empty() {
            TokenFault::Rejected("it is not authenticated".to_owned())
        } else {
            TokenFault::Rejected(speakable(error, token))
        }
    }

    fn unreviewed(&self, problem: &str) -> TokenFault {
        let server = self.endpoint.authority().map_or("", |authority| authority.as_str());
        TokenFault::Unreviewed(format!("API server {server}: {problem}"))
    }
}

fn http_client(pem: &[u8], clock: Clock) -> Result<HttpClient, String> {
    let config = client_config(roots(pem)?, clock).map_err(|error| format!("can't be used: {error}"))?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(DEADLINE));
    let https =
        HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .build(https))
}

/// A message that may be shown: short, printable, and without the token should it ever be in there.
fn speakable(message: &str, token: &Secret) -> String {
    let message = match std::str::from_utf8(token.expose()) {
        Ok(token) if !token.is_empty() => message.replace(token, "(token)"),
        Ok(_) | Err(_) => message.to_owned(),
    };
    message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

#[cfg(test)]
mod tests;
