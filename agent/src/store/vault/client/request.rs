//! A request as it is asked for, and as it goes out.

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use hyper::body::Bytes;
use zeroize::Zeroizing;

use crate::identity::X509Svid;
use crate::secret::Secret;
use crate::store::vault::address::Server;
use crate::store::vault::config::Namespace;

/// Marks a request as made on purpose, which a proxy may require.
static REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
static TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
static NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
static WRAP_TTL: HeaderName = HeaderName::from_static("x-vault-wrap-ttl");

/// One request.
#[derive(Clone, Copy)]
pub(in crate::store::vault) struct Call<'a> {
    pub(in crate::store::vault) method: &'a Method,
    /// After `/v1/`, with its query; already fit for a URL.
    pub(in crate::store::vault) path: &'a str,
    pub(in crate::store::vault) namespace: &'a Namespace,
    pub(in crate::store::vault) credential: Credential<'a>,
    /// Ask for a wrapped answer that lives so many seconds.
    pub(in crate::store::vault) wrap: Option<u64>,
    pub(in crate::store::vault) body: Option<&'a Bytes>,
    /// Making it twice does no harm.
    pub(in crate::store::vault) repeatable: bool,
}

/// What a request is authorized by.
#[derive(Clone, Copy)]
pub(in crate::store::vault) enum Credential<'a> {
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
pub(in crate::store::vault) fn json_body(value: &impl serde::Serialize) -> Option<Bytes> {
    let text = serde_json::to_vec(value).ok()?;
    Some(Bytes::from_owner(Zeroizing::new(text)))
}

/// The request as it goes to `server`; none if a piece of it can stand in no request.
pub(super) fn request(server: &Server, call: Call<'_>) -> Option<Request<Full<Bytes>>> {
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
pub(in crate::store::vault) fn sensitive(bytes: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(bytes).ok()?;
    value.set_sensitive(true);
    Some(value)
}
