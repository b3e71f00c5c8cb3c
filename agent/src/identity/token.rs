//! What a service account token says of itself, before anybody has checked its signature.
//!
//! Good for choosing and for wording a refusal, never for granting anything.

use jsonwebtoken::dangerous::insecure_decode_claims;
use serde::Deserialize;

use crate::secret::Secret;

/// Tokens of kubelet's are some 1 to 2 KiB; nothing longer is looked at.
pub(crate) const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// The claims that matter before a review (RFC 7519 §4.1).
#[derive(Debug, Deserialize)]
pub(crate) struct Glance {
    /// When it ends, Unix seconds.
    pub(crate) exp: Option<i64>,
    /// Whom it is for.
    #[serde(default)]
    pub(crate) aud: Audiences,
}

/// The `aud` claim: one string, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Audiences {
    /// One.
    One(String),
    /// Any number.
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Audiences {
    /// Whether `audience` is among them.
    pub(crate) fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

/// Looks at a token's claims; nothing if it is no JWT.
pub(crate) fn glance(token: &Secret) -> Option<Glance> {
    (token.len() <= MAX_TOKEN_BYTES).then(|| insecure_decode_claims(token.expose()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn jwt(claims: &str) -> Secret {
        Secret::from(format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims)))
    }

    #[test]
    fn claims_at_a_glance() {
        let seen = glance(&jwt(r#"{"exp":17,"aud":["a","b"]}"#)).unwrap();
        assert_eq!(seen.exp, Some(17));
        assert!(seen.aud.contains("b") && !seen.aud.contains("c"));
        assert!(glance(&jwt(r#"{"aud":"a"}"#)).unwrap().aud.contains("a"));
        assert!(!glance(&jwt("{}")).unwrap().aud.contains("a"));
        assert!(glance(&Secret::from("opaque".to_owned())).is_none());
        assert!(glance(&Secret::new(vec![b'.'; MAX_TOKEN_BYTES + 1])).is_none());
    }
}
