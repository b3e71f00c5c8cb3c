//! Wrapping tokens that somebody left for the pod: looked at first, then unwrapped, once.

use std::sync::Arc;

use http::Method;
use serde::Deserialize;

use super::client::{Call, Credential, json_body};
use super::config::Namespace;
use super::document::{self, text};
use super::login::{Door, said};
use super::wanted::{Unwrap, Wanted};
use crate::Error;
use crate::secret::Node;

/// What came out of a wrapping token: it cannot be had again.
#[derive(Debug)]
pub(super) struct Unwrapped {
    /// The version of the secret that held the token.
    pub(super) of: String,
    pub(super) document: Arc<Node>,
}

#[derive(Deserialize)]
struct Lookup {
    creation_path: String,
}

/// Unwraps the token in `holder` if the right path made it.
///
/// Whoever intercepts such a token and wraps something else in its place cannot fake the path, and whoever unwraps it
/// first is noticed: it works once.
pub(super) async fn unwrap(
    door: &Door,
    namespace: &Namespace,
    wanted: &Wanted,
    unwrap: &Unwrap,
    holder: &Node,
) -> Result<Node, Error> {
    let Unwrap { field, created_by } = unwrap;
    let token = text(holder, field).ok_or_else(|| Error::NotFound {
        reference: wanted.reference.clone(),
        problem: format!("vault.unwrap: the secret has no text field {field:?}"),
    })?;
    let unusable = |problem: String| Error::Unusable {
        store: wanted.reference.split(':').next().unwrap_or_default().to_owned(),
        problem: format!("{}: {problem}", wanted.reference),
    };
    let spent = |said: String| {
        unusable(format!(
            "the wrapping token in {field:?} has ended or was used already ({said}); if nobody of yours did, treat what it held as stolen; have a new one made"
        ))
    };
    let shown = std::str::from_utf8(token.expose()).unwrap_or_default();
    let body = json_body(&serde_json::json!({ "token": shown }));
    let call = Call {
        method: &Method::POST,
        path: "sys/wrapping/lookup",
        namespace,
        credential: Credential::None,
        wrap: None,
        body: body.as_ref(),
        repeatable: true,
    };
    let reply = door.client.call(call).await?;
    door.passing(&reply, "looking a wrapping token up")?;
    let made_by = reply
        .envelope()
        .filter(|_| reply.status.is_success())
        .and_then(|envelope| envelope.data)
        .and_then(|data| serde_json::from_str::<Lookup>(data.get()).ok())
        .map(|lookup| lookup.creation_path);
    let Some(made_by) = made_by else { return Err(spent(said(&reply, &[token]))) };
    if made_by.trim_matches('/') != created_by {
        return Err(unusable(format!(
            "the wrapping token in {field:?} was made by {made_by:?}, not by {created_by:?}; it is not unwrapped"
        )));
    }
    // The token authorizes its own unwrapping; naming it in the body too would spend it for nothing.
    let call = Call {
        path: "sys/wrapping/unwrap",
        credential: Credential::Token(token),
        body: None,
        repeatable: false,
        ..call
    };
    let reply = door.client.call(call).await?;
    door.passing(&reply, "unwrapping")?;
    if !reply.status.is_success() {
        return Err(spent(said(&reply, &[token])));
    }
    let data = reply.envelope().and_then(|envelope| envelope.data);
    let data = data.ok_or_else(|| unusable("what was wrapped holds no data".to_owned()))?;
    document::parse(data).map_err(|flaw| unusable(format!("what was wrapped {flaw}")))
}
