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
    /// SPIRE if one of its sockets is given (its Broker API before its Delegated Identity API), else the embedded issuer
    Auto,
    /// Countersign's own issuer, by kubelet's pod-bound tokens
    Embedded,
    /// SPIRE's Broker API (SPIRE 1.15.2 or newer): SPIRE attests each pod by its Kubernetes reference
    SpireBroker,
    /// SPIRE's Delegated Identity API (any SPIRE): this agent says what each pod is, and may have every identity of its node
    SpireDelegated,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Embedded => "embedded",
            Self::SpireBroker => "spire-broker",
            Self::SpireDelegated => "spire-delegated",
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
    /// SPIRE: admin socket (`admin_socket_path` there), for the Delegated Identity API; pods are read from the API server
    #[arg(long, env = "COUNTERSIGN_SPIRE_ADMIN_SOCKET", value_name = "SOCKET")]
    pub spire_admin_socket: Option<Socket>,
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
    /// Where the embedded issuer's roots or SPIRE's pods are read.
    #[error("{0}")]
    Reading(String),
    /// There is nothing to choose from.
    #[error(
        "no identity source is configured: give --issuer-address, --agent-token and --issuer-bundle or --bundle-configmap for the embedded issuer, or --spire-workload-socket and --spire-broker-socket (or --spire-admin-socket) for SPIRE"
    )]
    Nothing,
}

/// Makes the source that `args` ask for; says which, and why, in the log. `node` is this node's name.
pub fn choose(
    args: SourceArgs,
    api: &ApiArgs,
    node: &str,
    trust_domain: TrustDomain,
    clock: Clock,
) -> Result<Source, ChoiceError> {
    let (choice, reason) = found(&args)?;
    let source = build(args, api, node, choice, trust_domain, clock)?;
    info!(source = ?choice, reason, "identity source chosen");
    Ok(source)
}

/// What is built.
#[derive(Debug, Clone, Copy)]
enum Choice {
    Embedded,
    SpireBroker,
    SpireDelegated,
    SpireEither,
}

impl Choice {
    /// The source that its flags are missing for.
    fn kind(self) -> Kind {
        match self {
            Self::Embedded => Kind::Embedded,
            Self::SpireBroker | Self::SpireEither => Kind::SpireBroker,
            Self::SpireDelegated => Kind::SpireDelegated,
        }
    }
}

/// The source that the flags are for. SPIRE, once a socket of it is given, is never given up for the embedded issuer: the
/// same pod would be somebody else from one restart to the next.
fn found(args: &SourceArgs) -> Result<(Choice, &'static str), ChoiceError> {
    const CONFIGURED: &str = "it is configured so";
    let (broker, admin) = (args.spire_broker_socket.is_some(), args.spire_admin_socket.is_some());
    match args.identity_source {
        Kind::Embedded => Ok((Choice::Embedded, CONFIGURED)),
        Kind::SpireBroker => Ok((Choice::SpireBroker, CONFIGURED)),
        Kind::SpireDelegated => Ok((Choice::SpireDelegated, CONFIGURED)),
        Kind::Auto if broker && admin => {
            Ok((Choice::SpireEither, "a broker socket and an admin socket of SPIRE's are configured"))
        }
        Kind::Auto if broker => Ok((Choice::SpireBroker, "a broker socket of SPIRE's is configured")),
        Kind::Auto if admin => Ok((
            Choice::SpireDelegated,
            "an admin socket of SPIRE's is configured, and no broker socket, which would need less power",
        )),
        Kind::Auto if args.issuer_address.is_some() => {
            Ok((Choice::Embedded, "no broker or admin socket of SPIRE's is configured"))
        }
        Kind::Auto => Err(ChoiceError::Nothing),
    }
}

fn build(
    args: SourceArgs,
    api: &ApiArgs,
    node: &str,
    choice: Choice,
    trust_domain: TrustDomain,
    clock: Clock,
) -> Result<Source, ChoiceError> {
    let missing = |missing| ChoiceError::Missing { source_kind: choice.kind(), missing };
    let (workload_socket, broker_socket) = (args.spire_workload_socket, args.spire_broker_socket);
    let broker = || {
        Ok(spire::BrokerConfig {
            workload_socket: workload_socket.ok_or_else(|| {
                missing("--spire-workload-socket, the SPIRE agent's socket_path: this agent's own SVID comes from there")
            })?,
            broker_socket: broker_socket.ok_or_else(|| {
                missing("--spire-broker-socket, the socket_path of the SPIRE agent's experimental.broker block (SPIRE 1.15.2 or newer)")
            })?,
        })
    };
    let admin_socket = args.spire_admin_socket;
    let delegated = || {
        let admin_socket = admin_socket
            .ok_or_else(|| missing("--spire-admin-socket, the SPIRE agent's admin_socket_path"))?;
        if node.is_empty() {
            return Err(missing("--node-name, for it vouches for the pods of its own node alone"));
        }
        let server = api
            .server("--spire-admin-socket")
            .map_err(|problem| ChoiceError::Reading(format!("--kubernetes-url: {problem}")))?;
        Ok(spire::DelegatedConfig { admin_socket, server, node: node.to_owned() })
    };
    let way = match choice {
        Choice::Embedded => {
            return Ok(Source::Embedded(Box::new(Embedded::new(embedded::Config {
                address: args
                    .issuer_address
                    .ok_or_else(|| missing("--issuer-address, the host:port of the issuer's TLS port"))?,
                bundle: bundle_source(args.issuer_bundle, args.bundle_configmap, api)?,
                agent_token: args.agent_token.ok_or_else(|| {
                    missing("--agent-token, the file with this agent's own projected token")
                })?,
                audience: args.audience,
                trust_domain,
                clock,
            }))));
        }
        Choice::SpireBroker => spire::WayConfig::Broker(broker()?),
        Choice::SpireDelegated => spire::WayConfig::Delegated(delegated()?),
        Choice::SpireEither => spire::WayConfig::Either(broker()?, delegated()?),
    };
    Ok(Source::Spire(Spire::open(spire::Config { way, trust_domain, hint: args.spire_hint, clock })))
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
                ChoiceError::Reading("--bundle-configmap: must be NAMESPACE/NAME".to_owned())
            })?;
            let server = api
                .server("--bundle-configmap")
                .map_err(|problem| ChoiceError::Reading(format!("--kubernetes-url: {problem}")))?;
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
        match choose(cli.args, &cli.api, "node-1", "example.org".parse().unwrap(), Clock::system()) {
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

    #[tokio::test]
    async fn the_larger_power_has_a_socket_of_its_own_and_needs_the_api_server() {
        let admin = ["--spire-admin-socket", "/run/admin.sock"];
        let url = ["--kubernetes-url", "https://10.0.0.1"];
        assert_eq!(chosen(&[admin, url].concat()), Ok("spire"));
        assert_eq!(chosen(&[SPIRE.as_slice(), &admin, &url].concat()), Ok("spire"));
        let error = chosen(&admin).unwrap_err();
        assert!(
            error.contains("--kubernetes-url: is needed outside a pod with --spire-admin-socket"),
            "{error}"
        );
        let error = chosen(&["--identity-source", "spire-delegated"]).unwrap_err();
        assert!(
            error.starts_with("identities from spire-delegated need --spire-admin-socket, the"),
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
