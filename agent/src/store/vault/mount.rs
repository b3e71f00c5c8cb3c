//! What is mounted at a path, and so how a secret of it is to be treated.
//!
//! The server says it at `sys/internal/ui/mounts/<path>` to everybody who may do anything at that mount. Where that
//! endpoint is closed, the path itself has to tell.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::config::Namespace;
use super::wanted::{LeaseMode, Path, Verb, Wanted};

/// What was learnt of a mount is looked at again after this long.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Engines whose reads make a credential with a lease, unless its path says that it is a static one.
const LEASING: [&str; 15] = [
    "ad",
    "alicloud",
    "aws",
    "azure",
    "consul",
    "database",
    "gcp",
    "kubernetes",
    "ldap",
    "mongodbatlas",
    "nomad",
    "openldap",
    "oracle",
    "rabbitmq",
    "terraform",
];
/// First segments below such a mount that have no lease.
const STANDING: [&str; 6] = ["config", "roles", "role", "static-cred", "static-creds", "static-roles"];
/// Engines whose POSTs compute something and leave nothing behind.
const COMPUTING: [&str; 3] = ["transit", "transform", "totp"];

/// What kind of engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Engine {
    KvV1,
    KvV2,
    Pki,
    /// By the server's word for it.
    Other(String),
    /// The server did not say.
    Unknown,
}

/// A mount, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Without a slash at its end; empty: unknown.
    pub(super) path: String,
    pub(super) engine: Engine,
}

/// How a secret is to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manner {
    /// One for each volume.
    pub(super) apart: bool,
    /// With a login of its own, because it has a lease.
    pub(super) leased: bool,
    /// The key is made here and signed there.
    pub(super) signed: bool,
}

/// The server's word on a mount.
#[derive(Deserialize)]
struct Preflight {
    path: String,
    r#type: String,
    #[serde(default)]
    options: Option<HashMap<String, Option<String>>>,
}

impl Mount {
    /// From the `data` of the server's answer.
    pub(super) fn read(data: &str) -> Option<Self> {
        let Preflight { path, r#type, options } = serde_json::from_str(data).ok()?;
        let version = options.and_then(|mut options| options.remove("version").flatten());
        let engine = match (r#type.as_str(), version.as_deref()) {
            ("kv" | "generic", Some("2")) => Engine::KvV2,
            ("kv" | "generic", _) => Engine::KvV1,
            ("pki", _) => Engine::Pki,
            _ => Engine::Other(r#type),
        };
        Some(Self { path: path.trim_matches('/').to_owned(), engine })
    }

    /// A mount of which nothing is known.
    pub(super) fn unknown() -> Self {
        Self { path: String::new(), engine: Engine::Unknown }
    }

    /// The segments of `path` below this mount; of an unknown mount, those that follow the first.
    pub(super) fn below<'p>(&self, path: &'p Path) -> Vec<&'p str> {
        let above = if self.path.is_empty() { 1 } else { self.path.split('/').count() };
        path.segments().skip(above).collect()
    }

    /// How `wanted` is to be fetched from here.
    pub(super) fn manner(&self, wanted: &Wanted) -> Manner {
        let below = self.below(&wanted.path);
        let has = |name: &str| below.contains(&name);
        let signed = match self.engine {
            Engine::Pki | Engine::Unknown => {
                let signs = matches!(below.as_slice(), ["sign", _] | ["issuer", _, "sign", _])
                    || (self.engine == Engine::Unknown && has("sign"));
                signs
                    && wanted.parameters.contains_key("common_name")
                    && !wanted.parameters.contains_key("csr")
            }
            Engine::KvV1 | Engine::KvV2 | Engine::Other(_) => false,
        };
        let post = wanted.verb() == Verb::Post;
        let (leased, apart) = match &self.engine {
            Engine::KvV1 | Engine::KvV2 => (false, false),
            Engine::Other(kind) if LEASING.contains(&kind.as_str()) => {
                let standing = below.first().is_some_and(|first| STANDING.contains(first));
                (!standing, !standing)
            }
            Engine::Other(kind) if COMPUTING.contains(&kind.as_str()) => (false, false),
            Engine::Pki | Engine::Other(_) => (false, post),
            Engine::Unknown => (has("creds"), has("creds") || post),
        };
        let (leased, apart) = match wanted.lease {
            LeaseMode::Auto if wanted.wrap.is_some() => (leased, true),
            LeaseMode::Auto => (leased, apart),
            LeaseMode::Own => (true, true),
            LeaseMode::Shared => (true, false),
            LeaseMode::None => (false, apart || wanted.wrap.is_some()),
        };
        Manner { apart, leased, signed }
    }
}

/// The mounts known so far.
#[derive(Debug, Default)]
pub(super) struct Mounts(Mutex<HashMap<(Namespace, String), (Mount, Instant)>>);

impl Mounts {
    /// The mount of `path`, if it is known and was learnt lately.
    pub(super) fn of(&self, namespace: &Namespace, path: &Path, now: Instant) -> Option<Mount> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut end = path.as_str().len();
        while let Some(prefix) = path.as_str().get(..end) {
            // The longest is the one: mounts do not nest.
            if let Some((mount, at)) = known.get(&(namespace.clone(), prefix.to_owned()))
                && now.duration_since(*at) < MAX_AGE
            {
                return Some(mount.clone());
            }
            end = prefix.rfind('/')?;
        }
        None
    }

    pub(super) fn learn(&self, namespace: &Namespace, mount: &Mount, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, at)| now.duration_since(*at) < MAX_AGE);
        known.insert((namespace.clone(), mount.path.clone()), (mount.clone(), now));
    }

    /// The server does not say what is mounted at `path`.
    pub(super) fn learn_unknown(&self, namespace: &Namespace, path: &Path, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, at)| now.duration_since(*at) < MAX_AGE);
        known.insert((namespace.clone(), path.as_str().to_owned()), (Mount::unknown(), now));
    }

    /// Something did not fit: the mount may have been replaced.
    pub(super) fn forget(&self, namespace: &Namespace, mount: &Mount) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&(namespace.clone(), mount.path.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Reference, StoreNames};

    fn wanted(text: &str) -> Wanted {
        let stores: StoreNames = ["vault"].into_iter().collect();
        Wanted::parse(&Reference::parse(&format!("vault:{text}"), &stores).unwrap().source).unwrap()
    }

    fn mount(path: &str, kind: &str, version: &str) -> Mount {
        let options =
            if version.is_empty() { "null".to_owned() } else { format!(r#"{{"version":"{version}"}}"#) };
        Mount::read(&format!(r#"{{"path":"{path}/","type":"{kind}","options":{options},"accessor":"x"}}"#))
            .unwrap()
    }

    #[test]
    fn engines_by_the_server_s_word() {
        assert_eq!(mount("kv", "kv", "2"), Mount { path: "kv".into(), engine: Engine::KvV2 });
        assert_eq!(mount("a/b", "kv", "1").engine, Engine::KvV1);
        assert_eq!(mount("a/b", "kv", "").engine, Engine::KvV1);
        assert_eq!(mount("pki", "pki", "").engine, Engine::Pki);
        assert_eq!(mount("db", "database", "").engine, Engine::Other("database".into()));
        assert_eq!(Mount::read("{}"), None);
    }

    #[test]
    fn manners() {
        let (shared, own, leased) = ((false, false, false), (true, false, false), (true, true, false));
        let signed = (true, false, true);
        for (mount, text, manner) in [
            (mount("kv", "kv", "2"), "kv/data/a", shared),
            (mount("kv", "kv", "2"), "kv/data/creds/a", shared),
            (mount("kv", "kv", "2"), "kv/data/a?vault.wrap=1m", own),
            (mount("database", "database", ""), "database/creds/app", leased),
            (
                mount("database", "database", ""),
                "database/creds/app?vault.lease=shared",
                (false, true, false),
            ),
            (mount("database", "database", ""), "database/creds/app?vault.lease=none", own),
            (mount("database", "database", ""), "database/static-creds/app", shared),
            (mount("my/pki", "pki", ""), "my/pki/sign/web?common_name=a", signed),
            (mount("pki", "pki", ""), "pki/issuer/x/sign/web?common_name=a", signed),
            (mount("pki", "pki", ""), "pki/sign/web?common_name=a&csr=b", own),
            (mount("pki", "pki", ""), "pki/issue/web?common_name=a", own),
            (mount("pki", "pki", ""), "pki/cert/ca", shared),
            (mount("transit", "transit", ""), "transit/decrypt/k?ciphertext=x", shared),
            (mount("auth/approle", "approle", ""), "auth/approle/role/a/secret-id?vault.method=post", own),
            (mount("auth/approle", "approle", ""), "auth/approle/role/a/role-id", shared),
            (mount("aws", "aws", ""), "aws/creds/a", leased),
            (Mount::unknown(), "database/creds/app", leased),
            (Mount::unknown(), "kv/data/app", shared),
            (Mount::unknown(), "pki/sign/web?common_name=a", signed),
            (Mount::unknown(), "x/y?vault.lease=own", leased),
        ] {
            let Manner { apart, leased, signed } = mount.manner(&wanted(text));
            assert_eq!((apart, leased, signed), manner, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn mounts_are_found_by_their_prefix_for_a_while() {
        let (mounts, root) = (Mounts::default(), Namespace::default());
        let team = Namespace::parse("team").unwrap();
        let kv = mount("a/kv", "kv", "2");
        mounts.learn(&root, &kv, Instant::now());
        let find =
            |namespace: &Namespace, path: &str| mounts.of(namespace, &wanted(path).path, Instant::now());
        assert_eq!(find(&root, "a/kv/data/x"), Some(kv.clone()));
        assert_eq!(find(&root, "a/kv"), Some(kv.clone()));
        assert_eq!(find(&root, "a/kv2/data/x"), None);
        assert_eq!(find(&team, "a/kv/data/x"), None);
        tokio::time::advance(MAX_AGE).await;
        assert_eq!(find(&root, "a/kv/data/x"), None);
        mounts.learn(&root, &kv, Instant::now());
        mounts.forget(&root, &kv);
        assert_eq!(find(&root, "a/kv/data/x"), None);
    }
}
