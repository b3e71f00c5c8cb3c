//! The issuer's flags, as they are written.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::kubernetes::ApiArgs;

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
