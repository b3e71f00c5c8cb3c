//! The issuer's flags, and what they come to.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::clock::Clock;
use crate::issuer::Error;
use crate::kubernetes::{ApiArgs, ObjectName, Resource, Server};
use crate::spiffe::TrustDomain;

/// The longest X.509-SVID: a root in memory lives seven days and stops signing at half of that.
const MAX_X509_TTL: Duration = Duration::from_secs(24 * 3600);
/// The longest JWT-SVID: it can't be withdrawn.
const MAX_JWT_TTL: Duration = Duration::from_secs(3600);
/// The shortest of either: below this, skew and renewals eat the life.
const MIN_TTL: Duration = Duration::from_secs(60);
/// The longest grace: a rollout waits for it at every replica.
const MAX_GRACE: Duration = Duration::from_secs(3600);
/// Flags of `countersign-agent issuer`.
#[derive(Debug, Parser)]
#[command(about = "Issue SVIDs for pod-bound service account tokens, for clusters without SPIRE")]
pub struct Args {
    /// Trust domain of everything issued, such as example.org.
    #[arg(long, env = "COUNTERSIGN_TRUST_DOMAIN")]
    pub trust_domain: String,
    /// Where gRPC and the documents are served over TLS.
    #[arg(long, env = "COUNTERSIGN_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Where the documents, health and metrics are served in plain HTTP.
    #[arg(long, env = "COUNTERSIGN_HTTP_LISTEN", default_value = "127.0.0.1:9411")]
    pub http_listen: SocketAddr,
    /// Who reviews tokens: the API server, or a key set on disk (which does not see that a pod is gone).
    #[arg(long, env = "COUNTERSIGN_REVIEWER", value_enum, default_value_t = ReviewerKind::Kubernetes)]
    pub reviewer: ReviewerKind,
    /// The cluster's token signing keys (/openid/v1/jwks), for --reviewer jwks.
    #[arg(long, env = "COUNTERSIGN_JWKS")]
    pub jwks: Option<PathBuf>,
    /// The iss claim tokens must have, for --reviewer jwks.
    #[arg(long, env = "COUNTERSIGN_TOKEN_ISSUER", default_value = "https://kubernetes.default.svc")]
    pub token_issuer: String,
    /// The audience tokens must have. Never the API server's own.
    #[arg(long, env = "COUNTERSIGN_AUDIENCE", default_value = "countersign")]
    pub audience: String,
    /// NAMESPACE/NAME of the agents' service account: nobody else may ask.
    #[arg(
        long,
        env = "COUNTERSIGN_AGENT_SERVICE_ACCOUNT",
        default_value = "countersign-system/countersign-agent"
    )]
    pub agent_service_account: String,
    /// PEM file with the root certificate, its key, and perhaps a second key for JWTs. In memory without it.
    #[arg(long, env = "COUNTERSIGN_ROOT_FILE")]
    pub root_file: Option<PathBuf>,
    /// Where the roots are written as PEM, at start and whenever they change.
    #[arg(long, env = "COUNTERSIGN_BUNDLE_OUT")]
    pub bundle_out: Option<PathBuf>,
    /// Life of an X.509-SVID.
    #[arg(long, env = "COUNTERSIGN_X509_TTL", default_value = "1h", value_parser = humantime::parse_duration)]
    pub x509_ttl: Duration,
    /// Life of a JWT-SVID.
    #[arg(long, env = "COUNTERSIGN_JWT_TTL", default_value = "5m", value_parser = humantime::parse_duration)]
    pub jwt_ttl: Duration,
    /// How long an identity may be renewed by its key before a token is demanded again. 0s: never by key.
    #[arg(long, env = "COUNTERSIGN_RENEW_WITHOUT_TOKEN", default_value = "24h", value_parser = humantime::parse_duration)]
    pub renew_without_token: Duration,
    /// The https URL at which this issuer's OIDC discovery is reached; becomes the iss claim of JWT-SVIDs.
    #[arg(long, env = "COUNTERSIGN_OIDC_ISSUER")]
    pub oidc_issuer: Option<String>,
    /// NAMESPACE/NAME of the `ConfigMap` in which all replicas publish their roots and public keys
    #[arg(long, env = "COUNTERSIGN_BUNDLE_CONFIGMAP")]
    pub bundle_configmap: Option<String>,
    /// This replica's name, such as its pod's, shown beside what it publishes.
    #[arg(long, env = "COUNTERSIGN_REPLICA_NAME", default_value = "")]
    pub replica_name: String,
    /// How long after its keys were published beside other replicas' an issuer becomes ready: agents that watch have
    /// seen them at once, a mounted file takes up to two minutes.
    #[arg(long, env = "COUNTERSIGN_PUBLISH_GRACE", default_value = "10s", value_parser = humantime::parse_duration)]
    pub publish_grace: Duration,
    /// Serve the mutating webhook that gives annotated pods their volume, at /inject of the TLS address.
    #[arg(long, env = "COUNTERSIGN_INJECT")]
    pub inject: bool,
    /// The `MutatingWebhookConfiguration` whose certificate authority is kept current.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_CONFIGURATION")]
    pub webhook_configuration: Option<String>,
    /// Names and IP addresses, with commas between them, by which the API server reaches the webhook; they are put
    /// into the serving certificate.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_HOST", value_delimiter = ',')]
    pub webhook_host: Vec<String>,
    /// The API server.
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Who reviews tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReviewerKind {
    /// The key set in a file.
    Jwks,
    /// The API server's `TokenReview`.
    Kubernetes,
}

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
