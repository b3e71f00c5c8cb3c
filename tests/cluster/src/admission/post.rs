//! Requests to the API server, with all that it answers: warnings are headers, which typed clients drop.

#![expect(clippy::indexing_slicing, reason = "a JSON value answers null for what is not there")]

use anyhow::{Context, Result, bail};
use http::header::{CONTENT_TYPE, WARNING};
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::Value;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The object, or why not.
    pub outcome: Result<Value, String>,
    /// What the user is warned of.
    pub warnings: Vec<String>,
}

impl Answer {
    /// The object.
    pub fn object(self) -> Result<Value> {
        self.outcome.map_err(|message| anyhow::anyhow!("refused: {message}"))
    }

    /// The refusal.
    pub fn refusal(self) -> Result<String> {
        match self.outcome {
            Ok(_) => bail!("let in"),
            Err(message) => Ok(message),
        }
    }
}

/// Sends one request and reads its answer.
pub async fn send(client: &Client, method: Method, path: &str, kind: &str, body: &Value) -> Result<Answer> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(CONTENT_TYPE, kind)
        .body(Body::from(serde_json::to_vec(body)?))?;
    let response = client.send(request).await.with_context(|| path.to_owned())?;
    let warnings = response.headers().get_all(WARNING).iter();
    let warnings = warnings.map(|value| Ok(value.to_str()?.to_owned())).collect::<Result<_>>()?;
    let good = response.status().is_success();
    let body = response.into_body().collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&body)
        .with_context(|| format!("{path}: {}", String::from_utf8_lossy(&body)))?;
    let message = || answer["message"].as_str().map_or_else(|| answer.to_string(), str::to_owned);
    let outcome = if good { Ok(answer) } else { Err(message()) };
    Ok(Answer { outcome, warnings })
}

/// Makes an object.
pub async fn create(client: &Client, path: &str, object: &Value) -> Result<Answer> {
    send(client, Method::POST, path, "application/json", object).await
}

/// What making it would give; nothing is kept.
pub async fn try_create(client: &Client, path: &str, object: &Value) -> Result<Answer> {
    create(client, &format!("{path}?dryRun=All&fieldValidation=Strict"), object).await
}

/// Changes an object by a JSON patch.
pub async fn patch(client: &Client, path: &str, operations: &Value) -> Result<Answer> {
    send(client, Method::PATCH, path, "application/json-patch+json", operations).await
}

/// Removes an object.
pub async fn delete(client: &Client, path: &str) -> Result<Answer> {
    send(client, Method::DELETE, path, "application/json", &serde_json::json!({})).await
}
