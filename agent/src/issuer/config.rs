//! What an issuer runs with: what its flags come to.

mod args;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use args::{Args, ReviewerKind};

use crate::clock::Clock;
use crate::issuer::Error;
use crate::kubernetes::{ObjectName, Resource, Server};
use crate::spiffe::TrustDomain;

/// The longest X.509-SVID: a root in memory lives seven days and stops signing at half of that.
const MAX_X509_TTL: Duration = Duration::from_secs(24 * 3600);
/// The longest JWT-SVID: it can't be withdrawn.
const MAX_JWT_TTL: Duration = Duration::from_secs(3600);
/// The shortest of either: below this, skew and renewals eat the life.
const MIN_TTL: Duration = Duration::from_secs(60);
/// The longest grace: a rollout waits for it at every replica.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// A reviewer and what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReviewerConfig {
    /// Offline, by keys.
    Jwks {
        /// The key set (RFC 7517 §5).
        file: PathBuf,
        /// The `iss` claim tokens must have.
        issuer: String,
    },
    /// By the API server.
    Kubernetes(Server),
}

/// Where and how the bundle of all replicas is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationConfig {
    /// Where.
    pub server: Server,
    /// The `ConfigMap`.
    pub object: ObjectName,
    /// This replica, for people.
    pub replica: String,
    /// How long after publication a replica beside others becomes ready.
    pub grace: Duration,
}

/// The webhook's part of an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectConfig {
    /// The names the API server knows it by, beside the issuer's own.
    pub hosts: Vec<WebhookHost>,
    /// The configuration to keep, and where.
    pub configuration: Option<(Server, ObjectName)>,
}

/// A name in the serving certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookHost {
    /// A DNS name.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// A service account by its two names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The issuer's configuration, each value fit for use.
#[derive(Debug, Clone)]
pub struct Config {
    /// Of everything issued.
    pub trust_domain: TrustDomain,
    /// TLS.
    pub listen: SocketAddr,
    /// Plain HTTP.
    pub http_listen: SocketAddr,
    /// Who reviews tokens.
    pub reviewer: ReviewerConfig,
    /// The audience tokens must have.
    pub audience: String,
    /// Who may ask.
    pub agent: ServiceAccount,
    /// PEM file with root and keys; in memory without it.
    pub root_file: Option<PathBuf>,
    /// Where the roots are written.
    pub bundle_out: Option<PathBuf>,
    /// Life of an X.509-SVID.
    pub x509_ttl: Duration,
    /// Life of a JWT-SVID.
    pub jwt_ttl: Duration,
    /// How long renewal by key goes on after a token was last seen.
    pub renew_without_token: Duration,
    /// The webhook, if it is served.
    pub inject: Option<InjectConfig>,
    /// The bundle of all replicas; alone without it.
    pub publication: Option<PublicationConfig>,
    /// The `iss` claim of JWT-SVIDs, without a trailing slash.
    pub oidc_issuer: Option<String>,
    /// Time.
    pub clock: Clock,
}

impl Config {
    /// Checks the flags.
    pub fn new(args: Args, clock: Clock) -> Result<Self, Error> {
        let flag = |flag, problem: String| Error::Flag { flag, problem };
        let trust_domain: TrustDomain = args
            .trust_domain
            .parse()
            .map_err(|problem: crate::spiffe::SpiffeIdError| flag("trust-domain", problem.to_string()))?;
        if args.audience.is_empty() {
            return Err(flag(
                "audience",
                "is empty; name the audience of the CSIDriver's tokenRequests".to_owned(),
            ));
        }
        let agent = service_account(&args.agent_service_account)
            .ok_or_else(|| flag("agent-service-account", "must be NAMESPACE/NAME".to_owned()))?;
        let within = |name, ttl: Duration, max: Duration| {
            if ttl >= MIN_TTL && ttl <= max {
                return Ok(ttl);
            }
            let (min, max) = (humantime::format_duration(MIN_TTL), humantime::format_duration(max));
            Err(flag(name, format!("must be between {min} and {max}")))
        };
        let oidc_issuer = args.oidc_issuer.as_deref().map(oidc_issuer).transpose()?;
        Ok(Self {
            reviewer: reviewer(&args)?,
            publication: publication(&args)?,
            inject: inject(&args)?,
            x509_ttl: within("x509-ttl", args.x509_ttl, MAX_X509_TTL)?,
            jwt_ttl: within("jwt-ttl", args.jwt_ttl, MAX_JWT_TTL)?,
            trust_domain,
            listen: args.listen,
            http_listen: args.http_listen,
            audience: args.audience,
            agent,
            root_file: args.root_file,
            bundle_out: args.bundle_out,
            renew_without_token: args.renew_without_token,
            oidc_issuer,
            clock,
        })
    }
}

fn service_account(text: &str) -> Option<ServiceAccount> {
    let (namespace, name) = text.split_once('/')?;
    let whole = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
    whole.then(|| ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// OIDC Discovery 1.0 §3: https, no query, no fragment.
fn oidc_issuer(text: &str) -> Result<String, Error> {
    let uri: Option<http::Uri> = text.parse().ok();
    let fit = uri.is_some_and(|uri| uri.scheme_str() == Some("https") && uri.query().is_none());
    if !fit || text.contains('#') {
        let problem = "must be an https URL without query and fragment".to_owned();
        return Err(Error::Flag { flag: "oidc-issuer", problem });
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn reviewer(args: &Args) -> Result<ReviewerConfig, Error> {
    match args.reviewer {
        ReviewerKind::Jwks => {
            let problem = "is needed with --reviewer jwks: a file with the cluster's /openid/v1/jwks";
            let file = args.jwks.clone().ok_or(Error::Flag { flag: "jwks", problem: problem.to_owned() })?;
            Ok(ReviewerConfig::Jwks { file, issuer: args.token_issuer.clone() })
        }
        ReviewerKind::Kubernetes => Ok(ReviewerConfig::Kubernetes(server(args, "--reviewer kubernetes")?)),
    }
}

fn publication(args: &Args) -> Result<Option<PublicationConfig>, Error> {
    let Some(text) = &args.bundle_configmap else { return Ok(None) };
    let object = ObjectName::namespaced(Resource::ConfigMaps, text).ok_or_else(|| Error::Flag {
        flag: "bundle-configmap",
        problem: "must be NAMESPACE/NAME".to_owned(),
    })?;
    if args.publish_grace > MAX_GRACE {
        let problem = format!("must be at most {}", humantime::format_duration(MAX_GRACE));
        return Err(Error::Flag { flag: "publish-grace", problem });
    }
    Ok(Some(PublicationConfig {
        server: server(args, "--bundle-configmap")?,
        object,
        replica: args.replica_name.clone(),
        grace: args.publish_grace,
    }))
}

fn inject(args: &Args) -> Result<Option<InjectConfig>, Error> {
    if !args.inject {
        return Ok(None);
    }
    let flag = |flag, problem: &str| Error::Flag { flag, problem: problem.to_owned() };
    let host = |text: &String| match text.parse() {
        Ok(address) => Ok(WebhookHost::Address(address)),
        Err(_) if is_host(text) => Ok(WebhookHost::Name(text.clone())),
        Err(_) => Err(flag("webhook-host", "must be DNS names or IP addresses, with commas between them")),
    };
    let hosts =
        args.webhook_host.iter().filter(|text| !text.is_empty()).map(host).collect::<Result<_, _>>()?;
    let configuration = args
        .webhook_configuration
        .as_deref()
        .map(|name| {
            let object = ObjectName::cluster(Resource::MutatingWebhookConfigurations, name);
            let object =
                object.ok_or_else(|| flag("webhook-configuration", "must be the name of an object"))?;
            Ok((server(args, "--webhook-configuration")?, object))
        })
        .transpose()?;
    Ok(Some(InjectConfig { hosts, configuration }))
}

fn is_host(text: &str) -> bool {
    rustls::pki_types::DnsName::try_from(text).is_ok()
}

fn server(args: &Args, needed_by: &str) -> Result<Server, Error> {
    args.api.server(needed_by).map_err(|problem| Error::Flag { flag: "kubernetes-url", problem })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn config(flags: &[&str]) -> Result<Config, Error> {
        let base = ["issuer", "--trust-domain", "example.org"];
        Config::new(Args::parse_from(base.iter().chain(flags)), Clock::system())
    }

    #[tokio::test]
    async fn defaults_and_the_api_server_of_the_pod() {
        let config =
            config(&["--kubernetes-service-host", "fd00::1", "--kubernetes-service-port", "6443"]).unwrap();
        let ReviewerConfig::Kubernetes(Server { url, ca, .. }) = config.reviewer else {
            panic!("not kubernetes")
        };
        assert_eq!(url, "https://[fd00::1]:6443/");
        assert_eq!(ca, PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"));
        assert_eq!(config.x509_ttl, Duration::from_secs(3600));
        assert_eq!(config.agent.namespace, "countersign-system");
    }

    #[test]
    fn refused_flags_say_which_and_why() {
        for (flags, message) in [
            (
                vec!["--reviewer", "jwks"],
                "--jwks: is needed with --reviewer jwks: a file with the cluster's /openid/v1/jwks",
            ),
            (
                vec![],
                "--kubernetes-url: is needed outside a pod with --reviewer kubernetes, such as https://10.0.0.1:6443",
            ),
            (
                vec!["--kubernetes-url", "http://10.0.0.1"],
                "--kubernetes-url: must be https://HOST:PORT: tokens are not sent in the clear",
            ),
            (
                vec!["--kubernetes-url", "https://10.0.0.1", "--bundle-configmap", "bundle"],
                "--bundle-configmap: must be NAMESPACE/NAME",
            ),
            (
                vec![
                    "--kubernetes-url",
                    "https://10.0.0.1",
                    "--bundle-configmap",
                    "a/b",
                    "--publish-grace",
                    "2h",
                ],
                "--publish-grace: must be at most 1h",
            ),
            (
                vec!["--kubernetes-url", "https://10.0.0.1", "--inject", "--webhook-host", "a.svc,b/c"],
                "--webhook-host: must be DNS names or IP addresses, with commas between them",
            ),
            (
                vec!["--kubernetes-url", "https://10.0.0.1", "--inject", "--webhook-configuration", "A"],
                "--webhook-configuration: must be the name of an object",
            ),
            (vec!["--agent-service-account", "agent"], "--agent-service-account: must be NAMESPACE/NAME"),
            (
                vec!["--audience", ""],
                "--audience: is empty; name the audience of the CSIDriver's tokenRequests",
            ),
            (
                vec!["--jwks", "k", "--reviewer", "jwks", "--x509-ttl", "2days"],
                "--x509-ttl: must be between 1m and 1day",
            ),
            (
                vec!["--jwks", "k", "--reviewer", "jwks", "--jwt-ttl", "1s"],
                "--jwt-ttl: must be between 1m and 1h",
            ),
            (
                vec!["--oidc-issuer", "http://a"],
                "--oidc-issuer: must be an https URL without query and fragment",
            ),
            (vec!["--trust-domain", "A"], "--trust-domain: trust domain must be 1 to 255 of a-z 0-9 . _ -"),
        ] {
            let base = if flags.contains(&"--trust-domain") {
                vec!["issuer"]
            } else {
                vec!["issuer", "--trust-domain", "example.org"]
            };
            let error =
                Config::new(Args::parse_from(base.iter().chain(&flags)), Clock::system()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
