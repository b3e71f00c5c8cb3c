//! The annotation and attribute keys that Countersign knows.

use super::{FilePath, Problem, suggest};

const SECRET: &str = "secret.countersign.dev";
const TEMPLATE: &str = "template.countersign.dev";
const JWT: &str = "jwt.countersign.dev";
const SVID: &str = "svid.countersign.dev";
const PLAIN: &str = "countersign.dev";
const BUNDLE: &str = "bundle.countersign.dev";
const DOMAINS: [&str; 6] = [SECRET, TEMPLATE, JWT, BUNDLE, SVID, PLAIN];
const SVID_NAMES: [&str; 8] =
    ["x509", "pem", "der", "p12", "p12-truststore", "jks-truststore", "folder", "hint"];
const PLAIN_NAMES: [&str; 7] =
    ["refresh", "on-revoked", "stale-ok", "on-change", "inject", "path", "containers"];

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A file with a secret.
    Secret(FilePath),
    /// A file made from a template.
    Template(FilePath),
    /// A file with a JWT-SVID.
    Jwt(FilePath),
    /// A file with a trust domain's bundle.
    Bundle(FilePath),
    /// Three files with the X.509-SVID.
    X509,
    /// One file with key and chain.
    Pem,
    /// Three files with the X.509-SVID, as DER.
    Der,
    /// One file with key and chain, as PKCS#12.
    Pkcs12,
    /// One file with the trust bundle, as PKCS#12.
    Pkcs12Truststore,
    /// One file with the trust bundle for Java.
    JksTruststore,
    /// A directory as the draft SPIFFE Filesystem Delivery has it.
    Folder,
    /// Which of several SVIDs is meant.
    Hint,
    /// How long secrets are good for.
    Refresh,
    /// What becomes of files whose secret is withdrawn.
    OnRevoked,
    /// Whether the pod may start with what the node has read before.
    StaleOk,
    /// Whom to tell when files have changed.
    OnChange,
    /// Whether the admission policy adds the volume.
    Inject,
    /// Where the admission policy mounts the volume.
    Path,
    /// Into which containers the admission policy mounts it.
    Containers,
}

impl Key {
    pub(super) fn parse(key: &str) -> Result<Self, Problem> {
        let Some((domain, name)) = key.split_once('/') else {
            return Err(without_slash(key));
        };
        match (domain, name) {
            (SECRET, file) => FilePath::parse(file).map(Self::Secret),
            (TEMPLATE, file) => FilePath::parse(file).map(Self::Template),
            (JWT, file) => FilePath::parse(file).map(Self::Jwt),
            (BUNDLE, file) => FilePath::parse(file).map(Self::Bundle),
            (SVID, "x509") => Ok(Self::X509),
            (SVID, "pem") => Ok(Self::Pem),
            (SVID, "der") => Ok(Self::Der),
            (SVID, "p12") => Ok(Self::Pkcs12),
            (SVID, "p12-truststore") => Ok(Self::Pkcs12Truststore),
            (SVID, "jks-truststore") => Ok(Self::JksTruststore),
            (SVID, "folder") => Ok(Self::Folder),
            (SVID, "hint") => Ok(Self::Hint),
            (PLAIN, "refresh") => Ok(Self::Refresh),
            (PLAIN, "on-revoked") => Ok(Self::OnRevoked),
            (PLAIN, "stale-ok") => Ok(Self::StaleOk),
            (PLAIN, "on-change") => Ok(Self::OnChange),
            (PLAIN, "inject") => Ok(Self::Inject),
            (PLAIN, "path") => Ok(Self::Path),
            (PLAIN, "containers") => Ok(Self::Containers),
            (domain, name) => Err(unknown(domain, name)),
        }
    }
}

/// The names known under a domain that does not take a file's name.
fn names(domain: &str) -> &'static [&'static str] {
    match domain {
        SVID => &SVID_NAMES,
        PLAIN => &PLAIN_NAMES,
        _ => &[],
    }
}

fn unknown(domain: &str, name: &str) -> Problem {
    let Some(near) = suggest::nearest(domain, DOMAINS) else {
        return Problem::new(format!("unknown key; {}", all_keys()));
    };
    let names = names(near);
    if names.is_empty() {
        return Problem::new(format!("unknown key; did you mean {near}/{name}?"));
    }
    if let Some(name) = suggest::nearest(name, names.iter().copied()) {
        return Problem::new(format!("unknown key; did you mean {near}/{name}?"));
    }
    let keys: Vec<String> = names.iter().map(|name| format!("{near}/{name}")).collect();
    Problem::new(format!("unknown key; known are {}; a file is {SECRET}/<file>", keys.join(", ")))
}

fn without_slash(key: &str) -> Problem {
    if let Some(domain) = suggest::nearest(key, DOMAINS) {
        return match names(domain) {
            [] => Problem::new(format!("unknown key; write {domain}/<file>")),
            [only] => Problem::new(format!("unknown key; did you mean {domain}/{only}?")),
            _ => Problem::new(format!("unknown key; {}", all_keys())),
        };
    }
    let bare = |domain: &str| {
        suggest::nearest(key, names(domain).iter().copied()).map(|name| format!("{domain}/{name}"))
    };
    match bare(PLAIN).or_else(|| bare(SVID)) {
        Some(near) => Problem::new(format!("unknown key; did you mean {near}?")),
        None => Problem::new(format!("unknown key; {}", all_keys())),
    }
}

fn all_keys() -> String {
    format!(
        "known are {SECRET}/<file>, {TEMPLATE}/<file>, {JWT}/<file>, {BUNDLE}/<file>, {SVID}/x509 and {PLAIN}/refresh"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let file = |text| FilePath::parse(text).unwrap();
        for (text, key) in [
            ("secret.countersign.dev/db-password", Key::Secret(file("db-password"))),
            ("secret.countersign.dev/db/password", Key::Secret(file("db/password"))),
            ("template.countersign.dev/app.env", Key::Template(file("app.env"))),
            ("jwt.countersign.dev/token", Key::Jwt(file("token"))),
            ("svid.countersign.dev/x509", Key::X509),
            ("svid.countersign.dev/pem", Key::Pem),
            ("svid.countersign.dev/der", Key::Der),
            ("svid.countersign.dev/p12", Key::Pkcs12),
            ("svid.countersign.dev/p12-truststore", Key::Pkcs12Truststore),
            ("svid.countersign.dev/jks-truststore", Key::JksTruststore),
            ("bundle.countersign.dev/partner.pem", Key::Bundle(file("partner.pem"))),
            ("svid.countersign.dev/folder", Key::Folder),
            ("svid.countersign.dev/hint", Key::Hint),
            ("countersign.dev/refresh", Key::Refresh),
            ("countersign.dev/on-change", Key::OnChange),
            ("countersign.dev/on-revoked", Key::OnRevoked),
            ("countersign.dev/stale-ok", Key::StaleOk),
            ("countersign.dev/inject", Key::Inject),
            ("countersign.dev/path", Key::Path),
            ("countersign.dev/containers", Key::Containers),
        ] {
            assert_eq!(Key::parse(text), Ok(key), "{text}");
        }
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let all = "unknown key; known are secret.countersign.dev/<file>, template.countersign.dev/<file>, \
                   jwt.countersign.dev/<file>, bundle.countersign.dev/<file>, svid.countersign.dev/x509 and countersign.dev/refresh";
        for (text, problem) in [
            ("secrets.countersign.dev/x", "unknown key; did you mean secret.countersign.dev/x?"),
            ("secret.countersing.dev/x", "unknown key; did you mean secret.countersign.dev/x?"),
            ("template.countersign.io/a/b", "unknown key; did you mean template.countersign.dev/a/b?"),
            ("tempalte.countersign.dev/x", "unknown key; did you mean template.countersign.dev/x?"),
            ("jtw.countersign.dev/x", "unknown key; did you mean jwt.countersign.dev/x?"),
            ("Secret.countersign.dev/x", "unknown key; did you mean secret.countersign.dev/x?"),
            ("countersign.dev/refesh", "unknown key; did you mean countersign.dev/refresh?"),
            ("countersing.dev/refesh", "unknown key; did you mean countersign.dev/refresh?"),
            ("countersign.dev/staleOk", "unknown key; did you mean countersign.dev/stale-ok?"),
            ("countersign.dev/on-revoke", "unknown key; did you mean countersign.dev/on-revoked?"),
            ("svid.countersign.dev/x590", "unknown key; did you mean svid.countersign.dev/x509?"),
            ("bundles.countersign.dev/a.pem", "unknown key; did you mean bundle.countersign.dev/a.pem?"),
            ("svids.countersign.dev/x509", "unknown key; did you mean svid.countersign.dev/x509?"),
            (
                "svid.countersign.dev/tls.crt",
                "unknown key; known are svid.countersign.dev/x509, svid.countersign.dev/pem, \
                 svid.countersign.dev/der, svid.countersign.dev/p12, svid.countersign.dev/p12-truststore, \
                 svid.countersign.dev/jks-truststore, svid.countersign.dev/folder, svid.countersign.dev/hint; a file is \
                 secret.countersign.dev/<file>",
            ),
            (
                "countersign.dev/db-password",
                "unknown key; known are countersign.dev/refresh, countersign.dev/on-revoked, \
                 countersign.dev/stale-ok, countersign.dev/on-change, countersign.dev/inject, countersign.dev/path, \
                 countersign.dev/containers; a file is secret.countersign.dev/<file>",
            ),
            ("refresh", "unknown key; did you mean countersign.dev/refresh?"),
            ("x509", "unknown key; did you mean svid.countersign.dev/x509?"),
            ("secret.countersign.dev", "unknown key; write secret.countersign.dev/<file>"),
            ("svid.countersign.dev", all),
            ("secretProviderClass", all),
            ("example.com/thing", all),
            ("", all),
            ("secret.countersign.dev/", "the file name is empty; put it after the slash"),
            ("secret.countersign.dev//etc", "the file name is absolute; write it relative to the volume"),
        ] {
            assert_eq!(Key::parse(text).unwrap_err().to_string(), problem, "{text}");
        }
    }
}
