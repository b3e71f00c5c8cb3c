//! Which identity source an agent uses, from its flags.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tracing::info;

use super::Source;
use super::embedded::{self, Embedded};
use super::spire::{self, Socket, Spire};
use crate::clock::Clock;
use crate::kubernetes::{ApiArgs, ObjectName, Resource};
use crate::spiffe::TrustDomain;

/// A source by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// SPIRE if one of its sockets is given, else the embedded issuer
    Auto,
    /// Countersign's own issuer, by kubelet's pod-bound tokens
    Embedded,
    /// SPIRE's Broker API (SPIRE 1.15.2 or newer): SPIRE attests each pod by its Kubernetes reference
    SpireBroker,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Embedded => "embedded",
            Self::SpireBroker => "spire-broker",
        })
    }
}

/// Flags for where identities come from.
#[derive(Debug, Clone, Args)]
pub struct SourceArgs {
    /// Where the pods' identities come from
    #[arg(long, env = "COUNTERSIGN_IDENTITY_SOURCE", value_enum, default_value_t = Kind::Auto)]
    pub identity_source: Kind,
    /// Embedded issuer: address of its TLS port, as host:port; all addresses behind the host are replicas, and so are
    /// several with commas between them
    #[arg(long, env = "COUNTERSIGN_ISSUER_ADDRESS")]
    pub issuer_address: Option<String>,
    /// Embedded issuer: PEM file with the roots it is known by; read again when it changes
    #[arg(long, env = "COUNTERSIGN_ISSUER_BUNDLE")]
    pub issuer_bundle: Option<PathBuf>,
    /// Embedded issuer: `ConfigMap` (namespace/name) in which its replicas publish the roots they are known by; watched
    #[arg(long, env = "COUNTERSIGN_BUNDLE_CONFIGMAP", conflicts_with = "issuer_bundle")]
    pub bundle_configmap: Option<String>,
    /// Embedded issuer: file with the agent's own pod-bound service account token; read again when it changes
    #[arg(long, env = "COUNTERSIGN_AGENT_TOKEN")]
    pub agent_token: Option<PathBuf>,
    /// Embedded issuer: audience of the pods' tokens, the one the `CSIDriver` object requests
    #[arg(long, env = "COUNTERSIGN_AUDIENCE", default_value = "countersign")]
    pub audience: String,
    /// SPIRE: Workload API socket, from which this agent has its own SVID
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "SOCKET")]
    pub spire_workload_socket: Option<Socket>,
    /// SPIRE: Broker API socket (`agent.experimental.broker.socket_path` there)
    #[arg(long, env = "SPIFFE_BROKER_SOCKET", value_name = "SOCKET")]
    pub spire_broker_socket: Option<Socket>,
    /// SPIRE: hint of the SVID to use where a pod has several [default: SPIRE's first]
    #[arg(long, env = "COUNTERSIGN_SPIRE_HINT", value_name = "HINT")]
    pub spire_hint: Option<String>,
}

/// Why there is no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// A flag that the source needs is not given.
    #[error("identities from {source_kind} need {missing}")]
    Missing {
        /// The source.
        source_kind: Kind,
        /// The flag, and what it is.
        missing: &'static str,
    },
    /// Where the embedded issuer's roots come from.
    #[error("{0}")]
    Bundle(String),
    /// There is nothing to choose from.
    #[error(
        "no identity source is configured: give --issuer-address, --agent-token and --issuer-bundle or --bundle-configmap for the embedded issuer, or --spire-workload-socket and --spire-broker-socket for SPIRE"
    )]
    Nothing,
}

/// Makes the source that `args` ask for; says which, and why, in the log.
pub fn choose(
    args: SourceArgs,
    api: &ApiArgs,
    trust_domain: TrustDomain,
    clock: Clock,
) -> Result<Source, ChoiceError> {
    let (kind, reason) = match args.identity_source {
        Kind::Auto => found(&args)?,
        given @ (Kind::Embedded | Kind::SpireBroker) => (given, "it is configured so"),
    };
    let source = build(args, api, kind, trust_domain, clock)?;
    info!(source = %kind, reason, "identity source chosen");
    Ok(source)
}

/// The source that the flags are for. SPIRE, once a socket of it is given, is never given up for the embedded issuer: the
/// same pod would be somebody else from one restart to the next.
fn found(args: &SourceArgs) -> Result<(Kind, &'static str), ChoiceError> {
    if args.spire_broker_socket.is_some() {
        Ok((Kind::SpireBroker, "a broker socket of SPIRE's is configured"))
    } else if args.issuer_address.is_some() {
        Ok((Kind::Embedded, "no broker socket of SPIRE's is configured"))
    } else {
        Err(ChoiceError::Nothing)
    }
}

fn build(
    args: SourceArgs,
    api: &ApiArgs,
    kind: Kind,
    trust_domain: TrustDomain,
    clock: Clock,
) -> Result<Source, ChoiceError> {
    let missing = |missing| ChoiceError::Missing { source_kind: kind, missing };
    match kind {
        Kind::Auto | Kind::Embedded => Ok(Source::Embedded(Box::new(Embedded::new(embedded::Config {
            address: args.issuer_address.ok_or_else(|| {
                missing("--issuer-address, the host:port of the issuer's TLS port")
            })?,
            bundle: bundle_source(args.issuer_bundle, args.bundle_configmap, api)?,
            agent_token: args
                .agent_token
                .ok_or_else(|| missing("--agent-token, the file with this agent's own projected token"))?,
            audience: args.audience,
            trust_domain,
            clock,
        })))),
        Kind::SpireBroker => Ok(Source::Spire(Spire::broker(spire::Config {
            workload_socket: args.spire_workload_socket.ok_or_else(|| {
                missing("--spire-workload-socket, the SPIRE agent's socket_path: this agent's own SVID comes from there")
            })?,
            broker_socket: args.spire_broker_socket.ok_or_else(|| {
                missing("--spire-broker-socket, the socket_path of the SPIRE agent's experimental.broker block (SPIRE 1.15.2 or newer)")
            })?,
            trust_domain,
            hint: args.spire_hint,
            clock,
        }))),
    }
}

/// The one of two flags that says where the roots come from.
fn bundle_source(
    file: Option<PathBuf>,
    object: Option<String>,
    api: &ApiArgs,
) -> Result<embedded::BundleSource, ChoiceError> {
    match (file, object) {
        (Some(file), None) => Ok(embedded::BundleSource::File(file)),
        (None, Some(object)) => {
            let object = ObjectName::namespaced(Resource::ConfigMaps, &object).ok_or_else(|| {
                ChoiceError::Bundle("--bundle-configmap: must be NAMESPACE/NAME".to_owned())
            })?;
            let server = api
                .server("--bundle-configmap")
                .map_err(|problem| ChoiceError::Bundle(format!("--kubernetes-url: {problem}")))?;
            Ok(embedded::BundleSource::ConfigMap(server, object))
        }
        (None, None) | (Some(_), Some(_)) => Err(ChoiceError::Missing {
            source_kind: Kind::Embedded,
            missing: "exactly one of --issuer-bundle, the PEM file that the issuer's --bundle-out writes, and --bundle-configmap",
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: SourceArgs,
        #[command(flatten)]
        api: ApiArgs,
    }

    const ISSUER: [&str; 6] =
        ["--issuer-address", "i:1", "--issuer-bundle", "/bundle", "--agent-token", "/token"];
    const SPIRE: [&str; 4] =
        ["--spire-workload-socket", "unix:///run/api.sock", "--spire-broker-socket", "/run/broker.sock"];

    fn chosen(flags: &[&str]) -> Result<&'static str, String> {
        let cli =
            Cli::try_parse_from(std::iter::once(&"agent").chain(flags)).map_err(|error| error.to_string())?;
        match choose(cli.args, &cli.api, "example.org".parse().unwrap(), Clock::system()) {
            Ok(Source::Embedded(_)) => Ok("embedded"),
            Ok(Source::Spire(_)) => Ok("spire"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test]
    async fn auto_goes_by_what_is_given_and_prefers_spire() {
        assert_eq!(chosen(&ISSUER), Ok("embedded"));
        assert_eq!(chosen(&SPIRE), Ok("spire"));
        assert_eq!(chosen(&[ISSUER.as_slice(), &SPIRE].concat()), Ok("spire"));
        let both = [ISSUER.as_slice(), &SPIRE, &["--identity-source", "embedded"]].concat();
        assert_eq!(chosen(&both), Ok("embedded"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let asked =
            |kind, flags: &[&str]| chosen(&[&["--identity-source", kind], flags].concat()).unwrap_err();
        assert!(
            chosen(&[]).unwrap_err().starts_with("no identity source is configured: give --issuer-address")
        );
        let error = asked("embedded", &ISSUER[..4]);
        assert!(error.starts_with("identities from embedded need --agent-token, the file"), "{error}");
        let error = asked("spire-broker", &SPIRE[..2]);
        assert!(error.starts_with("identities from spire-broker need --spire-broker-socket, the"), "{error}");
        let error = chosen(&SPIRE[2..]).unwrap_err();
        assert!(
            error.starts_with("identities from spire-broker need --spire-workload-socket, the"),
            "{error}"
        );
    }

    #[test]
    fn slips_of_the_pen() {
        let error = chosen(&["--identity-source", "spire-brocker"]).unwrap_err();
        assert!(error.contains("spire-broker"), "{error}");
        let error = chosen(&["--spire-broker-socket", "run/broker.sock"]).unwrap_err();
        assert!(error.contains("write a socket's absolute path"), "{error}");
    }
}
