//! What the configuration says about a store of Vault's kind, and what it means.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::Deserialize;

use super::address::Address;
use super::role::Role;
use crate::store::allow::Rule;

/// `type: vault`: a Vault or OpenBao, as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultConfig {
    /// The servers, `https://HOST:PORT` each; tried in this order.
    pub addresses: Vec<String>,
    /// PEM file with the roots the servers are known by; read again when it changes.
    pub ca_file: Option<PathBuf>,
    /// The name expected in the servers' certificates, and sent as SNI; none: the address's host.
    pub server_name: Option<String>,
    /// Namespace of everything (Vault Enterprise, OpenBao).
    pub namespace: Option<String>,
    /// How long one request may take, connecting included.
    pub timeout: Option<String>,
    /// How long a credential that was replaced lives on.
    pub lease_overlap: Option<String>,
    /// Whether to listen for events (Vault Enterprise), beside looking after `refresh`.
    #[serde(default)]
    pub events: bool,
    /// How pods log in.
    #[serde(default)]
    pub login: LoginConfig,
    /// Who may read what. None: the server's policy alone decides.
    pub allow: Option<Vec<Rule>>,
    /// Which SVID of a pod logs in, where SPIRE gives it several; none: the volume's own.
    #[serde(default, deserialize_with = "crate::store::config::hint")]
    pub hint: Option<Arc<str>>,
}

/// `login:`, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoginConfig {
    /// Which method.
    #[serde(default)]
    pub method: Method,
    /// Where it is mounted, without `auth/`.
    pub mount: Option<String>,
    /// Namespace of the login, where it is not the store's.
    pub namespace: Option<String>,
    /// The role, or a template of it.
    pub role: Option<String>,
    /// Audience of the JWT-SVID.
    pub audience: Option<String>,
    /// What `spiffe` shows.
    pub with: Option<Shown>,
    /// Whether reads may do without a token where the server allows it.
    pub inline: Option<Inline>,
}

/// How a pod logs in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Method {
    /// By JWT-SVID at the `jwt` auth method.
    #[default]
    Jwt,
    /// By X.509-SVID at the `cert` auth method.
    Cert,
    /// By either at Vault Enterprise's `spiffe` auth method.
    Spiffe,
    /// By JWT-SVID in the very request that reads (`OpenBao`); leased secrets log in with `jwt`.
    Inline,
}

/// What the `spiffe` method is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Shown {
    /// The JWT-SVID, in the Authorization header.
    #[default]
    Jwt,
    /// The X.509-SVID, in the TLS handshake.
    Cert,
}

/// Whether reads may do without a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Inline {
    /// Where the server is one that can.
    #[default]
    Auto,
    /// Never.
    Never,
}

/// The configuration, parsed.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) addresses: Vec<Address>,
    /// Set if any address is spoken to over TLS.
    pub(super) ca_file: Option<PathBuf>,
    pub(super) server_name: Option<ServerName<'static>>,
    pub(super) namespace: Namespace,
    pub(super) timeout: Duration,
    pub(super) overlap: Duration,
    pub(super) events: bool,
    pub(super) login: Login,
    pub(super) allow: Option<Vec<Rule>>,
}

/// How pods log in, parsed.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) method: Method,
    pub(super) mount: String,
    pub(super) namespace: Namespace,
    pub(super) role: Option<Role>,
    pub(super) audience: String,
    pub(super) shown: Shown,
    pub(super) inline: Inline,
}

/// A namespace's path without slashes at its ends; empty: the root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Namespace(String);

impl Namespace {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let path = text.trim_matches('/');
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let segment = |s: &str| !matches!(s, "" | "." | "..") && s.chars().all(legal);
        if path.is_empty() || !path.split('/').all(segment) {
            return Err(format!("namespace {text:?}: write names of A-Z a-z 0-9 _ - . with / between them"));
        }
        Ok(Self(path.to_owned()))
    }

    /// The namespace `child` below this one.
    pub(super) fn join(&self, child: &Self) -> Self {
        match (self.0.is_empty(), child.0.is_empty()) {
            (true, _) => child.clone(),
            (_, true) => self.clone(),
            _ => Self(format!("{}/{}", self.0, child.0)),
        }
    }

    /// None: the root.
    pub(super) fn header(&self) -> Option<&str> {
        (!self.0.is_empty()).then_some(self.0.as_str())
    }
}

impl Settings {
    /// Parses the configuration; the error names the key.
    pub(super) fn parse(config: VaultConfig) -> Result<Self, String> {
        let VaultConfig {
            addresses,
            ca_file,
            server_name,
            namespace,
            timeout,
            lease_overlap,
            events,
            login,
            allow,
            // What a turn shows it, and not what it asks for.
            hint: _,
        } = config;
        if events && login.method == Method::Inline {
            return Err(
                "events: are heard with a token, and login.method inline has none; leave one of them out"
                    .to_owned(),
            );
        }
        if addresses.is_empty() {
            return Err(
                "addresses: is empty; name at least one server, such as https://vault:8200".to_owned()
            );
        }
        let addresses = addresses.iter().map(|text| Address::parse(text)).collect::<Result<Vec<_>, _>>()?;
        if ca_file.is_none() && addresses.iter().any(Address::tls) {
            return Err(
                "caFile: is missing; name the PEM file with the roots that the servers' certificates were signed by"
                    .to_owned(),
            );
        }
        let named = |name: String| {
            ServerName::try_from(name.clone()).map_err(|_| format!("serverName {name:?}: is no host name"))
        };
        let server_name = server_name.map(named).transpose()?;
        let namespace = optional_namespace(namespace.as_deref())?;
        let span = |key: &str, text: Option<&str>, default: Duration, least: Duration, most: Duration| {
            let Some(text) = text else { return Ok(default) };
            let span = humantime::parse_duration(text)
                .map_err(|_| format!("{key} {text:?}: write a number and a unit, such as 30s"))?;
            if (least..=most).contains(&span) {
                Ok(span)
            } else {
                let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
                Err(format!("{key} {text:?}: may be from {least} to {most}"))
            }
        };
        let seconds = Duration::from_secs;
        Ok(Self {
            addresses,
            ca_file,
            server_name,
            timeout: span("timeout", timeout.as_deref(), seconds(10), seconds(1), seconds(60))?,
            overlap: span("leaseOverlap", lease_overlap.as_deref(), seconds(30), seconds(0), seconds(3600))?,
            events,
            login: Login::parse(login, &namespace).map_err(|problem| format!("login: {problem}"))?,
            namespace,
            allow,
        })
    }
}

fn optional_namespace(text: Option<&str>) -> Result<Namespace, String> {
    text.map(Namespace::parse).transpose().map(Option::unwrap_or_default)
}

impl Login {
    fn parse(config: LoginConfig, store: &Namespace) -> Result<Self, String> {
        let LoginConfig { method, mount, namespace, role, audience, with, inline } = config;
        if with.is_some() && method != Method::Spiffe {
            return Err("with: is for method spiffe only; leave it out".to_owned());
        }
        if inline.is_some() && method != Method::Jwt {
            return Err("inline: is for method jwt only; leave it out".to_owned());
        }
        let shown = with.unwrap_or_default();
        let bears_certificate = method == Method::Cert || (method == Method::Spiffe && shown == Shown::Cert);
        if audience.is_some() && bears_certificate {
            return Err("audience: a certificate has none; leave it out".to_owned());
        }
        let audience = audience.unwrap_or_else(|| "vault".to_owned());
        if audience.is_empty() || audience.chars().any(char::is_control) {
            return Err("audience: is empty; name what the role's bound_audiences has".to_owned());
        }
        let default = match method {
            Method::Jwt | Method::Inline => "jwt",
            Method::Cert => "cert",
            Method::Spiffe => "spiffe",
        };
        let mount = mount.unwrap_or_else(|| default.to_owned());
        let mount = mount.trim_matches('/');
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let segment = |s: &str| !matches!(s, "" | "." | "..") && s.chars().all(legal);
        if !mount.split('/').all(segment) || mount.starts_with("auth/") {
            return Err(format!(
                "mount {mount:?}: write the path of the auth method without auth/, such as jwt"
            ));
        }
        Ok(Self {
            method,
            mount: mount.to_owned(),
            namespace: namespace.as_deref().map_or_else(|| Ok(store.clone()), Namespace::parse)?,
            role: role.as_deref().map(Role::parse).transpose()?,
            audience,
            shown,
            inline: inline.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        let config: VaultConfig = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        Settings::parse(config)
    }

    #[test]
    fn the_least_and_the_most() {
        let least = parse("addresses: [https://vault:8200]\ncaFile: /ca\n").unwrap();
        assert_eq!((least.login.method, least.login.mount.as_str()), (Method::Jwt, "jwt"));
        assert_eq!((least.login.audience.as_str(), least.timeout), ("vault", Duration::from_secs(10)));
        assert_eq!(least.namespace.header(), None);
        let most = parse(
            "addresses: [https://a:8200, https://b/p]\ncaFile: /ca\nserverName: vault.example.com\nnamespace: /team/a/\ntimeout: 5s\n\
             leaseOverlap: 1m\nlogin:\n  method: spiffe\n  mount: spire\n  namespace: admin\n  role: '{ns}_{sa}'\n  audience: https://vault\n  with: jwt\n\
             allow:\n- id: spiffe://td/ns/*/sa/*\n  paths: ['kv/data/{ns}/**']\n",
        )
        .unwrap();
        assert_eq!(most.namespace.header(), Some("team/a"));
        assert_eq!(most.login.namespace.header(), Some("admin"));
        assert_eq!(most.overlap, Duration::from_secs(60));
        let child = Namespace::parse("b/c").unwrap();
        assert_eq!(most.namespace.join(&child).header(), Some("team/a/b/c"));
        assert_eq!(Namespace::default().join(&child).header(), Some("b/c"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let base = "addresses: [https://vault]\ncaFile: /ca\n";
        for (text, why) in [
            ("addresses: []\n".to_owned(), "addresses: is empty"),
            ("addresses: [https://vault]\n".to_owned(), "caFile: is missing"),
            ("addresses: [http://vault]\ncaFile: /ca\n".to_owned(), "in the clear"),
            (format!("{base}adress: x\n"), "adress"),
            (format!("{base}timeout: 10\n"), "timeout \"10\""),
            (format!("{base}timeout: 10m\n"), "may be from 1s to 1m"),
            (format!("{base}namespace: 'a b'\n"), "namespace \"a b\""),
            (format!("{base}serverName: 'a b'\n"), "serverName"),
            (format!("{base}login: {{method: kubernetes}}\n"), "kubernetes"),
            (format!("{base}login: {{mount: auth/jwt}}\n"), "without auth/"),
            (format!("{base}login: {{with: cert}}\n"), "for method spiffe only"),
            (format!("{base}login: {{method: cert, audience: a}}\n"), "audience: a certificate has none"),
            (format!("{base}login: {{role: '{{ns}}-{{sa}}'}}\n"), "login: role"),
            (format!("{base}events: true\nlogin: {{method: inline}}\n"), "events: are heard with a token"),
        ] {
            let problem = parse(&text).unwrap_err();
            assert!(problem.contains(why), "{text}: {problem}");
        }
    }
}
