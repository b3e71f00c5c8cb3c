//! What a server says, as far as it is understood.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Longest piece of a server's message that is handed on.
const MAX_MESSAGE: usize = 300;

/// One answer with a meaning: success, or a refusal of the server's own.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Zeroizing<Vec<u8>>,
    pub(super) retry_after: Option<Duration>,
    /// `X-Vault-Inline-Auth-Failed`: the login in the request failed, not the request itself.
    pub(super) inline_login_failed: bool,
}

/// The frame around every answer (Vault's HTTP API, "API operations"; the same in `OpenBao`).
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Envelope<'a> {
    #[serde(borrow)]
    pub(super) request_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) lease_id: Cow<'a, str>,
    pub(super) lease_duration: u64,
    pub(super) renewable: bool,
    #[serde(borrow)]
    pub(super) data: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) wrap_info: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) auth: Option<Auth<'a>>,
    pub(super) errors: Vec<String>,
}

/// The answer to a login or a renewal of its token.
#[derive(Deserialize)]
pub(super) struct Auth<'a> {
    #[serde(borrow)]
    pub(super) client_token: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) accessor: Cow<'a, str>,
    #[serde(default)]
    pub(super) token_policies: Option<Vec<String>>,
    #[serde(default)]
    pub(super) lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
    #[serde(borrow, default)]
    pub(super) token_type: Cow<'a, str>,
}

impl Reply {
    /// The frame; none: the answer is not the server's kind of JSON.
    pub(super) fn envelope(&self) -> Option<Envelope<'_>> {
        if self.body.is_empty() {
            return Some(Envelope::default());
        }
        serde_json::from_slice(&self.body).ok()
    }

    /// The server's own words, fit to be shown: short, printable, and without any of `secrets`.
    pub(super) fn message(&self, secrets: &[&Secret]) -> String {
        let errors = self.envelope().map(|envelope| envelope.errors).unwrap_or_default();
        speakable(&errors.join("; "), secrets)
    }
}

/// A message as it may be shown.
pub(super) fn speakable(message: &str, secrets: &[&Secret]) -> String {
    let mut message = message.to_owned();
    for secret in secrets {
        if let Ok(text) = std::str::from_utf8(secret.expose())
            && !text.is_empty()
        {
            message = message.replace(text, "(token)");
        }
    }
    let mut words = String::with_capacity(message.len().min(MAX_MESSAGE));
    for word in message.split_whitespace() {
        if !words.is_empty() {
            words.push(' ');
        }
        words.extend(word.chars().filter(|c| !c.is_control()));
    }
    words.chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_and_hold_no_token() {
        let token = Secret::from("hvs.secret".to_owned());
        assert_eq!(
            speakable("1 error occurred:\n\t* permission denied for hvs.secret\u{7}\n\n", &[&token]),
            "1 error occurred: * permission denied for (token)"
        );
        assert_eq!(speakable(&"x".repeat(1000), &[]).len(), MAX_MESSAGE);
        assert_eq!(speakable("as it is", &[&Secret::new(Vec::new())]), "as it is");
    }

    #[test]
    fn frames() {
        let reply = |body: &str| Reply {
            status: StatusCode::OK,
            body: Zeroizing::new(body.as_bytes().to_vec()),
            retry_after: None,
            inline_login_failed: false,
        };
        let empty = reply("");
        assert!(empty.envelope().unwrap().data.is_none());
        let nulls =
            reply(r#"{"request_id":"r","data":null,"auth":null,"wrap_info":null,"warnings":null,"more":1}"#);
        let envelope = nulls.envelope().unwrap();
        assert!(envelope.data.is_none() && envelope.auth.is_none() && envelope.request_id == "r");
        assert!(reply("<html>").envelope().is_none());
        assert_eq!(reply(r#"{"errors":["a","b"]}"#).message(&[]), "a; b");
    }
}
