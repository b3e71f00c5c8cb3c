//! Review by the API server: `TokenReview` of `authentication.k8s.io/v1`.

use std::sync::Arc;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::identity::token::glance;
use crate::issuer::refusal::TokenFault;
use crate::issuer::review::{Reviewed, service_account};
use crate::kubernetes::{Api, ApiError, speakable};
use crate::secret::Secret;

/// Where reviews are asked for.
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// How far our clock and the API server's may be apart, in seconds, before we refuse on our own.
const LEEWAY: i64 = 60;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Reviews tokens by asking the API server.
pub(crate) struct Kubernetes {
    api: Arc<Api>,
    audience: String,
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

impl Kubernetes {
    pub(crate) fn new(api: Arc<Api>, audience: String) -> Self {
        Self { api, audience }
    }

    pub(crate) async fn review(&self, token: &Secret) -> Result<Reviewed, TokenFault> {
        let expires = self.look(token)?;
        let answer = self.ask(token).await?;
        let status = answer.status.ok_or_else(|| {
            TokenFault::Unreviewed(format!(
                "API server {}: it answered a TokenReview without a status",
                self.api.server()
            ))
        })?;
        self.facts(status, token, expires)
    }

    /// Whether the API server answers reviews: asks it about a token that is none.
    pub(crate) async fn probe(&self) -> Result<(), TokenFault> {
        self.ask(&Secret::from("countersign.readiness.probe".to_owned())).await.map(|_| ())
    }

    /// Refuses what the API server would refuse too, without asking it.
    fn look(&self, token: &Secret) -> Result<Option<i64>, TokenFault> {
        let claims = glance(token).ok_or_else(|| TokenFault::Malformed("it is no JWT".to_owned()))?;
        if !claims.aud.contains(&self.audience) {
            return Err(TokenFault::Audience { wanted: self.audience.clone() });
        }
        if claims.exp.is_some_and(|exp| exp.saturating_add(LEEWAY) <= self.api.clock().unix()) {
            return Err(TokenFault::Expired);
        }
        Ok(claims.exp)
    }

    async fn ask(&self, token: &Secret) -> Result<Answer, TokenFault> {
        let text = std::str::from_utf8(token.expose())
            .map_err(|_| TokenFault::Malformed("it is no text".to_owned()))?;
        let question = Question {
            api_version: "authentication.k8s.io/v1",
            kind: "TokenReview",
            spec: Spec { token: text, audiences: [&self.audience] },
        };
        self.api.create(REVIEWS, &question, Some(token)).await.map_err(|error| failed(&error))
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
            TokenFault::Rejected(without(error, token))
        }
    }
}

/// The API server's trouble, with its remedy where there is one.
fn failed(error: &ApiError) -> TokenFault {
    let remedy = match error.status() {
        Some(StatusCode::UNAUTHORIZED) => "; the token of --kubernetes-token is not accepted",
        Some(StatusCode::FORBIDDEN) => {
            "; the issuer's service account needs the right to create tokenreviews"
        }
        Some(_) | None => "",
    };
    TokenFault::Unreviewed(format!("{error}{remedy}"))
}

/// A message that may be shown: short, printable, and without the token should it ever be in there.
fn without(message: &str, token: &Secret) -> String {
    match std::str::from_utf8(token.expose()) {
        Ok(token) if !token.is_empty() => speakable(&message.replace(token, "(token)")),
        Ok(_) | Err(_) => speakable(message),
    }
}

#[cfg(test)]
mod tests;
