//! An answer as it comes in: whole, of bounded size, and of a server of this kind, or trouble.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use zeroize::Zeroizing;

use super::trouble::{Trouble, innermost};
use crate::store::vault::answer::Reply;

/// The longest answer looked at: the server's own limit for a secret is 1 MiB.
const MAX_BODY: usize = 4 << 20;
/// A `Retry-After` longer than this is taken for this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What a standby says between the end of one active server and the beginning of the next.
const NO_ACTIVE: &str = "active cluster node not found";

static INLINE_FAILED: HeaderName = HeaderName::from_static("x-vault-inline-auth-failed");

/// The answer, if it has a meaning: what a server out of service says, and what no such server says, are trouble.
pub(super) async fn read(response: Response<Incoming>) -> Result<Reply, Trouble> {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
    let inline_login_failed = response.headers().contains_key(&INLINE_FAILED);
    if status.is_redirection() {
        let headers = response.headers();
        return Err(Trouble { sent_to: sent_to(headers), ..Trouble::before(redirected(status, headers)) });
    }
    let body = collect(response.into_body()).await.map_err(Trouble::midway)?;
    let reply = Reply { status, body, retry_after, inline_login_failed };
    if reply.envelope().is_none() {
        let kind = if kind.is_empty() { "something" } else { kind.as_str() };
        let problem = format!(
            "it answers {status} with {kind} that is not Vault's JSON; is it a Vault or OpenBao server, or a proxy before one?"
        );
        return Err(Trouble { retry_after, ..Trouble::midway(problem) });
    }
    let out_of_service = |what: &str| {
        let message = reply.message(&[]);
        let message = if message.is_empty() { String::new() } else { format!(": {message}") };
        let problem = format!("{what} ({}){message}", status.as_u16());
        Err(Trouble { retry_after, ..Trouble::before(problem) })
    };
    match status.as_u16() {
        500 if reply.message(&[]).contains(NO_ACTIVE) => {
            out_of_service("it stands by, and there is no active server for now")
        }
        472 => out_of_service("it is the standby of a disaster recovery cluster"),
        473 | 474 => out_of_service("it is a standby that cannot serve this"),
        501 => out_of_service("it is not initialized"),
        503 => out_of_service("it is sealed, in maintenance or overloaded"),
        530 => out_of_service("it was removed from its cluster"),
        _ => Ok(reply),
    }
}

/// What is said of a redirect: a token is not sent where somebody points.
pub(super) fn redirected(status: StatusCode, headers: &HeaderMap) -> String {
    format!(
        "it redirects ({status}) to {}; name that server among the addresses, or let standbys forward requests",
        sent_to(headers).as_deref().unwrap_or("elsewhere")
    )
}

fn sent_to(headers: &HeaderMap) -> Option<String> {
    headers.get(LOCATION).and_then(|to| to.to_str().ok()).and_then(origin)
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
