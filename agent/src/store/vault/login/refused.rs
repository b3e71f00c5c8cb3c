//! Why a login failed, in words that say what to do.

use std::borrow::Cow;

use super::{Door, NoLogin};
use crate::secret::Secret;
use crate::spiffe::SpiffeId;
use crate::store::vault::answer::Reply;

impl Door {
    /// Why a login failed, and what to do about it.
    pub(in crate::store::vault) fn refusal(
        &self,
        id: &SpiffeId,
        role: Option<&str>,
        reply: &Reply,
        jwt: &Secret,
    ) -> NoLogin {
        let message = reply.message(&[jwt]);
        let mount = &self.login.mount;
        let status = reply.status.as_u16();
        let remedy = remedy(&message, status, self, id);
        let passing = status == 429 || (reply.status.is_server_error() && remedy.is_none());
        let role = role.map_or_else(|| "the default role".to_owned(), |role| format!("role {role}"));
        let words = if message.is_empty() { String::new() } else { format!(": {message}") };
        let remedy = remedy.map_or(String::new(), |remedy| format!("; {remedy}"));
        let problem = format!("{id} could not log in at auth/{mount} with {role} ({status}{words}){remedy}");
        if passing {
            return NoLogin::Other(self.client.unavailable(problem, reply.retry_after));
        }
        NoLogin::Refused(problem)
    }
}

/// What to do, where the server's words are known ones (Vault 1.21 and `OpenBao` 2.6 say the same).
fn remedy(message: &str, status: u16, door: &Door, id: &SpiffeId) -> Option<Cow<'static, str>> {
    let audience = &door.login.audience;
    let has = |words: &str| message.contains(words);
    Some(if has("namespace not found") {
        let namespace = door.login.namespace.header().unwrap_or_default();
        format!(
            "the server has no namespace {namespace}: correct namespace, or login.namespace, of the store"
        )
        .into()
    } else if has("missing name in alias") {
        "the certificate has no common name, which the cert method makes its alias from. Give the SPIRE entry a dnsName, \
         or log in with method jwt, or mount the method with -local and start the server with VAULT_DISABLE_LOCAL_AUTH_MOUNT_ENTITIES"
            .into()
    } else if has("no audiences bound to the role") || has("audience") {
        format!("the token is for audience {audience:?}: bound_audiences of the role must name it").into()
    } else if has("could not be found") || has("invalid role") || has("unknown role") {
        format!("make the role at auth/{}/role/…, or correct login.role of the store", door.login.mount)
            .into()
    } else if has("expired") || has("not valid yet") || has("before") && has("nbf") || has("(iat)") {
        "the clocks of the issuer and of the server differ by more than the leeway of the role (clock_skew_leeway, 60 s \
         unless it is set; expiration_leeway, 150 s)"
            .into()
    } else if has("sub claim") || has("subject") || has("bound claim") || has("claim \"sub\"") {
        format!("bound_subject or bound_claims of the role must allow {id}").into()
    } else if has("signature") || has("no known key") || has("kid") {
        "the server does not know the key that signed it: its jwks_url or keys must be those of this trust domain, and current".into()
    } else if has("issuer") || has("iss") && has("claim") {
        "bound_issuer of the method must be the issuer of this trust domain's tokens, or be left out".into()
    } else if has("no handler for route") || has("unsupported path") || status == 404 {
        format!(
            "nothing is mounted there: enable the method at {}/, or correct login.mount of the store",
            door.login.mount
        )
        .into()
    } else if has("invalid certificate or no client certificate supplied") || has("failed to match") {
        format!("a role must have the trust domain's roots as certificate and allowed_uri_sans that match {id}; the listener must ask for client certificates").into()
    } else if status == 403 {
        format!(
            "is the method enabled at {}/ in this namespace, and does its role allow {id}?",
            door.login.mount
        )
        .into()
    } else {
        return None;
    })
}
