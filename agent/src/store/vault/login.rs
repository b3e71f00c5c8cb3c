//! Logging in as the pod itself. What the server says to one that it refuses is next door.

mod refused;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, Method as Verb};
use hyper::body::Bytes;
use serde::Serialize;
use zeroize::Zeroizing;

use super::answer::Reply;
use super::client::{Call, Client, Credential, json_body, sensitive};
use super::config::{Login, Method, Shown};
use super::token::Token;
use crate::Error;
use crate::clock::Clock;
use crate::identity::JwtSvid;
use crate::secret::Secret;
use crate::sources::Caller;
use crate::spiffe::SpiffeId;

/// Speaks with the part of the server that deals in tokens.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) client: Client,
    pub(super) login: Login,
    pub(super) clock: Clock,
}

/// What a login was refused for, before it is known which reference it was for.
#[derive(Debug, Clone)]
pub(super) enum NoLogin {
    /// The server does not let this identity in.
    Refused(String),
    /// It was never asked, or did not answer.
    Other(Error),
}

impl NoLogin {
    pub(super) fn error(self, reference: &str) -> Error {
        match self {
            Self::Refused(problem) => Error::LoginRefused { reference: reference.to_owned(), problem },
            Self::Other(error) => error,
        }
    }
}

impl From<Error> for NoLogin {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// What became of a renewal.
pub(super) enum Renewed {
    /// It lives on.
    Token(Token),
    /// The server does not know it any more, or does not renew it.
    Refused(String),
}

#[derive(Serialize)]
struct JwtLogin<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    jwt: &'a str,
}

#[derive(Serialize)]
struct CertLogin<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct SpiffeLogin<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    r#type: &'a str,
}

#[derive(Serialize)]
struct InlineParameter<'a> {
    key: &'a str,
    value: &'a str,
}

impl Door {
    /// Whether a login shows a JWT-SVID.
    pub(super) fn shows_jwt(&self) -> bool {
        match self.login.method {
            Method::Jwt | Method::Inline => true,
            Method::Cert => false,
            Method::Spiffe => self.login.shown == Shown::Jwt,
        }
    }

    /// The role that `id` logs in with; none: the mount's default.
    pub(super) fn role(&self, id: &SpiffeId) -> Result<Option<String>, NoLogin> {
        self.login.role.as_ref().map(|role| role.of(id)).transpose().map_err(NoLogin::Refused)
    }

    /// Logs in. `jwt` is there if [`Self::shows_jwt`].
    pub(super) async fn log_in(&self, caller: Caller<'_>, jwt: Option<&JwtSvid>) -> Result<Token, NoLogin> {
        let id = &caller.identity.spiffe_id;
        let role = self.role(id)?;
        let role = role.as_deref();
        let none = Secret::new(Vec::new());
        let jwt = jwt.map_or(&none, |jwt| &jwt.token);
        let (body, credential) = match (self.login.method, self.login.shown) {
            (Method::Jwt | Method::Inline, _) => {
                let jwt = std::str::from_utf8(jwt.expose()).unwrap_or_default();
                (json_body(&JwtLogin { role, jwt }), Credential::None)
            }
            (Method::Cert, _) => {
                (json_body(&CertLogin { name: role }), Credential::Certificate(&caller.identity.x509))
            }
            (Method::Spiffe, Shown::Jwt) => {
                (json_body(&SpiffeLogin { role, r#type: "jwt" }), Credential::Bearer(jwt))
            }
            (Method::Spiffe, Shown::Cert) => (
                json_body(&SpiffeLogin { role, r#type: "cert" }),
                Credential::Certificate(&caller.identity.x509),
            ),
        };
        let path = format!("auth/{}/login", self.login.mount);
        let reply = self.post(&path, credential, body.as_ref(), true).await?;
        // Certificates rotate, and a token that came with one is renewed with that very one only; the spiffe method
        // does not say what it wants.
        let renews = matches!(self.login.method, Method::Jwt | Method::Inline);
        let granted = reply.envelope().and_then(|envelope| envelope.auth);
        match granted {
            Some(auth) if reply.status.is_success() && !auth.client_token.is_empty() => {
                Ok(Token::granted(&auth, renews, self.clock.now()))
            }
            _ => Err(self.refusal(id, role, &reply, jwt)),
        }
    }

    /// Renews `token` for as long as it was good for at first.
    pub(super) async fn renew(&self, token: &Token) -> Result<Renewed, Error> {
        let body = json_body(&serde_json::json!({ "increment": token.ttl.as_secs() }));
        let credential = Credential::Token(&token.secret);
        let reply = self.post("auth/token/renew-self", credential, body.as_ref(), true).await?;
        if !reply.status.is_success() {
            self.passing(&reply, "renewing a token")?;
            return Ok(Renewed::Refused(said(&reply, &[&token.secret])));
        }
        let envelope = reply.envelope().unwrap_or_default();
        let Some(auth) = envelope.auth else {
            return Ok(Renewed::Refused("it sent no token back".to_owned()));
        };
        let granted = Duration::from_secs(auth.lease_duration);
        Ok(Renewed::Token(token.renewed(granted, auth.renewable, self.clock.now())))
    }

    /// Whether the server still knows `token`.
    pub(super) async fn knows(&self, token: &Token) -> Result<bool, Error> {
        let call = Call {
            method: &Verb::GET,
            path: "auth/token/lookup-self",
            namespace: &self.login.namespace,
            credential: Credential::Token(&token.secret),
            wrap: None,
            body: None,
            repeatable: true,
        };
        let reply = self.client.call(call).await?;
        self.passing(&reply, "looking a token up")?;
        Ok(reply.status.is_success())
    }

    /// Revokes `token`, and all leases made with it. One that is not known any more is revoked.
    pub(super) async fn revoke(&self, token: &Token) -> Result<(), Error> {
        let credential = Credential::Token(&token.secret);
        let reply = self.post("auth/token/revoke-self", credential, None, true).await?;
        if reply.status.is_success() || !self.knows(token).await? {
            return Ok(());
        }
        self.passing(&reply, "revoking a token")?;
        Err(Error::Unusable {
            store: String::new(),
            problem: format!("the server refuses it: {}", said(&reply, &[&token.secret])),
        })
    }

    /// A POST of the login's namespace.
    pub(super) async fn post(
        &self,
        path: &str,
        credential: Credential<'_>,
        body: Option<&Bytes>,
        repeatable: bool,
    ) -> Result<Reply, Error> {
        let (method, namespace) = (&Verb::POST, &self.login.namespace);
        self.client.call(Call { method, path, namespace, credential, wrap: None, body, repeatable }).await
    }

    /// What will pass: rate limits and errors inside the server.
    pub(super) fn passing(&self, reply: &Reply, doing: &str) -> Result<(), Error> {
        let status = reply.status;
        if status.as_u16() == 429 || status.is_server_error() {
            let problem = format!("{doing}: the server answers {}", said(reply, &[]));
            return Err(self.client.unavailable(problem, reply.retry_after));
        }
        Ok(())
    }

    /// The headers of a request that logs in and reads at once (`OpenBao`, "inline authentication").
    pub(super) fn inline(&self, id: &SpiffeId, jwt: &JwtSvid) -> Result<HeaderMap, NoLogin> {
        let role = self.role(id)?;
        let mut headers = HeaderMap::new();
        let unsendable =
            || NoLogin::Other(self.client.unavailable("the login can't be written".to_owned(), None));
        let mut add = |name: &'static str, value: &[u8]| {
            headers.insert(HeaderName::from_static(name), sensitive(value).ok_or_else(unsendable)?);
            Ok::<_, NoLogin>(())
        };
        add("x-vault-inline-auth-path", format!("auth/{}/login", self.login.mount).as_bytes())?;
        if let Some(namespace) = self.login.namespace.header() {
            add("x-vault-inline-auth-namespace", namespace.as_bytes())?;
        }
        if let Some(role) = role {
            add("x-vault-inline-auth-parameter-role", &inline_parameter("role", &role))?;
        }
        let jwt = std::str::from_utf8(jwt.token.expose()).unwrap_or_default();
        add("x-vault-inline-auth-parameter-jwt", &inline_parameter("jwt", jwt))?;
        Ok(headers)
    }
}

fn inline_parameter(key: &str, value: &str) -> Zeroizing<Vec<u8>> {
    // Two texts always make JSON.
    let json = Zeroizing::new(serde_json::to_vec(&InlineParameter { key, value }).unwrap_or_default());
    Zeroizing::new(URL_SAFE_NO_PAD.encode(&json).into_bytes())
}

/// Status and words of an answer.
pub(super) fn said(reply: &Reply, secrets: &[&Secret]) -> String {
    let message = reply.message(secrets);
    let status = reply.status.as_u16();
    if message.is_empty() { status.to_string() } else { format!("{status}: {message}") }
}

/// A JWT-SVID that can still be shown.
pub(super) fn current(held: Option<&Arc<JwtSvid>>, clock: Clock) -> Option<Arc<JwtSvid>> {
    held.filter(|jwt| jwt.renew_at > clock.wall()).map(Arc::clone)
}
