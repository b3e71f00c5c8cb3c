//! SPIFFE IDs and trust domains, parsed once (SPIFFE-ID §2: <https://spiffe.io/docs/latest/spiffe-specs/spiffe-id/>).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest SPIFFE ID that must be supported, and the longest accepted, in bytes.
const MAX_ID_BYTES: usize = 2048;
/// The longest trust domain name, in bytes.
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// Why a text is no SPIFFE ID or trust domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The scheme is missing or another.
    #[error("does not start with spiffe://")]
    Scheme,
    /// The trust domain is empty, too long, or has a character outside `[a-z0-9._-]`.
    #[error("trust domain must be 1 to 255 of a-z 0-9 . _ -")]
    TrustDomain,
    /// A path segment is empty, `.`, `..`, or has a character outside `[A-Za-z0-9._-]`.
    #[error("each path segment must be made of A-Z a-z 0-9 . _ - and be neither empty, . nor ..")]
    Path,
    /// Longer than 2048 bytes.
    #[error("longer than 2048 bytes")]
    TooLong,
}

/// The name of a trust domain, such as `example.org`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name, without a scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID of a Kubernetes service account's workloads: `spiffe://<td>/ns/<namespace>/sa/<name>`.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<SpiffeId, SpiffeIdError> {
        // With a slash in it, a name would be several segments, and the ID perhaps another account's.
        if [namespace, name].iter().any(|segment| segment.contains('/')) {
            return Err(SpiffeIdError::Path);
        }
        format!("spiffe://{self}/ns/{namespace}/sa/{name}").parse()
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN_BYTES || !text.bytes().all(legal) {
            return Err(SpiffeIdError::TrustDomain);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE ID with a path, which is what a workload has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// The whole ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash; empty for a trust domain's own ID.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get("spiffe://".len() + self.trust_domain.as_str().len()..).unwrap_or_default()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_ID_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix("spiffe://").ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = match rest.split_once('/') {
            Some((domain, path)) => (domain, Some(path)),
            None => (rest, None),
        };
        let trust_domain = domain.parse()?;
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(legal);
        if path.is_some_and(|path| !path.split('/').all(segment)) {
            return Err(SpiffeIdError::Path);
        }
        Ok(Self { text: text.into(), trust_domain })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_id() {
        let id: SpiffeId = "spiffe://example.org/ns/pay/sa/api".parse().unwrap();
        assert_eq!(id.trust_domain().as_str(), "example.org");
        assert_eq!(id.path(), "/ns/pay/sa/api");
        assert_eq!(id.to_string(), "spiffe://example.org/ns/pay/sa/api");
        let root: SpiffeId = "spiffe://example.org".parse().unwrap();
        assert_eq!(root.path(), "");
    }

    #[test]
    fn what_is_no_id() {
        for (text, why) in [
            ("https://example.org/a", SpiffeIdError::Scheme),
            ("spiffe://", SpiffeIdError::TrustDomain),
            ("spiffe://Example.org/a", SpiffeIdError::TrustDomain),
            ("spiffe://example.org:8443/a", SpiffeIdError::TrustDomain),
            ("spiffe://user@example.org/a", SpiffeIdError::TrustDomain),
            ("spiffe://example.org/", SpiffeIdError::Path),
            ("spiffe://example.org/a/", SpiffeIdError::Path),
            ("spiffe://example.org/a//b", SpiffeIdError::Path),
            ("spiffe://example.org/a/../b", SpiffeIdError::Path),
            ("spiffe://example.org/a/./b", SpiffeIdError::Path),
            ("spiffe://example.org/..", SpiffeIdError::Path),
            ("spiffe://ex%61mple.org/a", SpiffeIdError::TrustDomain),
            ("spiffe://example.org/a%20b", SpiffeIdError::Path),
            ("spiffe://example.org/a?b", SpiffeIdError::Path),
            ("spiffe://example.org/a#b", SpiffeIdError::Path),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(why), "{text}");
        }
        let long = format!("spiffe://example.org/{}", "a".repeat(2048));
        assert_eq!(long.parse::<SpiffeId>(), Err(SpiffeIdError::TooLong));
        let longest = long.get(..2048).unwrap();
        assert_eq!(longest.parse::<SpiffeId>().unwrap().as_str(), longest);
        let domain = "d".repeat(256);
        assert_eq!(format!("spiffe://{domain}/a").parse::<SpiffeId>(), Err(SpiffeIdError::TrustDomain));
        assert_eq!(domain.get(1..).unwrap().parse::<TrustDomain>().unwrap().as_str().len(), 255);
    }

    #[test]
    fn service_account_names_cannot_add_segments() {
        let td: TrustDomain = "example.org".parse().unwrap();
        for (namespace, name) in
            [("pay", "api/../x"), ("pay", "api/x"), ("pay/sa/api", "x"), ("", "api"), ("pay", "")]
        {
            assert_eq!(td.service_account(namespace, name), Err(SpiffeIdError::Path), "{namespace} {name}");
        }
        assert_eq!(td.service_account("pay", "api").unwrap().as_str(), "spiffe://example.org/ns/pay/sa/api");
    }
}
