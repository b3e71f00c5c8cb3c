//! Starts the agent, the issuer, or a tool beside them.

use std::alloc::System;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use countersign_agent::clock::Clock;
use countersign_agent::config::RunArgs;
use countersign_agent::explain;
use countersign_agent::issuer::config::Args as IssuerArgs;
use countersign_agent::log::{self, LogArgs};
use countersign_agent::store::sops::command::Args as SopsArgs;
use countersign_agent::{hardening, issuer, run, signals};
use zeroizing_alloc::ZeroAlloc;

/// Overwrites what is freed: secrets also pass through libraries (TLS, HTTP/2, the template engine) whose buffers
/// are not of our secret types.
#[global_allocator]
static MEMORY: ZeroAlloc<System> = ZeroAlloc(System);

/// Countersign's agent: the identities and secrets of this node's pods, as files in memory
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve the driver of this node: fetch secrets as each pod itself and keep its files up to date
    Run(Box<RunArgs>),
    /// Vouch for pods: review their tokens, sign their SVIDs, publish the trust bundle
    Issuer {
        #[command(flatten)]
        args: Box<IssuerArgs>,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Make keys and files for a `sops` store
    Sops(SopsArgs),
    /// Say what the pods of a manifest come to: identity, role, files, and the policy they need. No store is asked
    Explain(explain::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli.role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not a log line: the process may have failed before it could log.
            #[expect(clippy::print_stderr, reason = "the last word of a process that could not start")]
            {
                eprintln!("countersign-agent: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start(role: Role) -> anyhow::Result<()> {
    hardening::shed()?;
    let log = match &role {
        Role::Run(args) => Some((&args.log, args.audit)),
        Role::Issuer { log, .. } => Some((log, false)),
        Role::Sops(_) | Role::Explain(_) => None,
    };
    if let Some((log, audit)) = log {
        log::start(log, audit)?;
    }
    // Two threads: the work is waiting, and each thread costs memory on every node.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match role {
            Role::Run(args) => {
                signals::until_asked_to_end(|shutdown| Box::pin(run::run(*args, shutdown))).await
            }
            Role::Issuer { args, .. } => {
                let config = issuer::Config::new(*args, Clock::system())?;
                signals::until_asked_to_end(async |shutdown| {
                    Ok(Box::pin(issuer::run(config, shutdown)).await?)
                })
                .await
            }
            Role::Sops(args) => Ok(countersign_agent::store::sops::command::run(args)?),
            Role::Explain(args) => explain::run(&args),
        }
    })
}
