//! `countersign-driver signaller`: sends the signals that pods asked for, and nothing else.
//!
//! To signal a process of another pod one has to be in the node's process namespace, which Kubernetes gives to a pod as
//! a whole. So this is a pod of its own: neither the agent, which holds secrets, nor the driver, which mounts, ever sees
//! the node's processes. It has one capability, `CAP_KILL`, and a seccomp filter that leaves three signals of it.
//!
//! It is told the pod's uid, the volume and what was asked for by the driver, which has all three from kubelet.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use countersign_proto::agent::STATUS_SOCKET;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, sentence};
use crate::identity::VERSION;
use crate::log::{Format, Severity};
use crate::process::Ending;
use crate::signaller::send::Node;
use crate::signaller::wire::{LONGEST, Order, Outcome, SOCKET};
use crate::sockets::{self, Audience};
use crate::{sandbox, status};

mod choose;
mod proc;
mod send;
pub mod wire;

/// The word on the command line that starts it.
pub const WORD: &str = "signaller";
/// Time for one order to be read and answered.
const LIMIT: Duration = Duration::from_secs(5);
/// Wait before the next connection is accepted when one could not be.
const AGAIN: Duration = Duration::from_millis(100);

/// Sends the signals that pods asked for when their files have changed.
///
/// It has to be in the process namespace of the node, as `hostPID: true` has it, and needs `CAP_KILL`.
#[derive(Debug, Parser)]
#[command(name = "countersign-driver signaller", version)]
pub struct CommandLine {
    /// Directory of its sockets; the driver is given the same with `--signals`
    #[arg(long, env = "COUNTERSIGN_SIGNALS")]
    pub signals: PathBuf,
    /// Where the node's processes are seen
    #[arg(long, default_value = "/proc", hide = true)]
    pub proc: PathBuf,
    /// Shape of the log lines
    #[arg(long, env = "COUNTERSIGN_LOG_FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Least severe level that is logged
    #[arg(long, env = "COUNTERSIGN_LOG_LEVEL", default_value = "info")]
    pub log_level: Severity,
}

/// The line of its status socket, which `countersign-driver probe` reads.
#[derive(Serialize)]
struct Line {
    version: &'static str,
    signaller: bool,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When a socket can't be made, or the filter can't be installed.
pub async fn run(line: CommandLine) -> Result<(), Error> {
    let stop = CancellationToken::new();
    let mut ending = Ending::new()?;
    let orders = sockets::listen(&line.signals.join(SOCKET), Audience::Owner)?;
    let status = sockets::listen(&line.signals.join(STATUS_SOCKET), Audience::Owner)?;
    sandbox::install()?;
    sandbox::leave_only(&send::SENT)?;
    tracing::info!(directory = %line.signals.display(), "waiting for the driver");
    let node = Node { proc: line.proc };
    let text = || {
        // Plain fields always have a JSON form.
        let line = Line { version: VERSION, signaller: true };
        serde_json::to_string(&line).map_or_else(|_| String::new(), |text| text + "\n")
    };
    let serving =
        async { tokio::join!(serve(orders, &node, &stop), status::serve(status, text, stop.clone())) };
    tokio::select! {
        _ = serving => {}
        () = ending.asked() => stop.cancel(),
    }
    for socket in [SOCKET, STATUS_SOCKET] {
        let path = line.signals.join(socket);
        if let Err(source) = sockets::remove(&path) {
            tracing::warn!(error = sentence(&Error::Path { step: "remove", path, source }), "a socket stays");
        }
    }
    Ok(())
}

/// Answers one order after another: each takes as long as looking through `/proc` does.
async fn serve(listener: UnixListener, node: &Node, stop: &CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let answered = match accepted {
            Ok((stream, _)) => {
                timeout(LIMIT, answer(stream, node)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
            }
            Err(error) => {
                sleep(AGAIN).await;
                Err(error)
            }
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "an order could not be read or answered");
        }
    }
}

async fn answer(mut stream: UnixStream, node: &Node) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    let peer = stream.peer_cred()?.uid();
    if peer != own {
        tracing::warn!(uid = peer, "somebody other than the driver was turned away");
        return Ok(());
    }
    let mut text = String::new();
    (&mut stream).take(LONGEST).read_to_string(&mut text).await?;
    let outcome = match Order::read(&text) {
        Ok(order) => {
            let outcome = node.send(&order);
            let (pod, asked) = (order.pod.as_str(), order.target.to_string());
            match (&outcome.problem, outcome.processes) {
                (Some(problem), _) => tracing::info!(pod.uid = pod, asked, problem, "not signalled"),
                (None, 0) => tracing::info!(pod.uid = pod, asked, "there is nobody to signal"),
                (None, processes) => tracing::info!(pod.uid = pod, asked, processes, "signalled"),
            }
            outcome
        }
        Err(problem) => {
            tracing::warn!(problem, "an order that makes no sense");
            Outcome::failed(problem)
        }
    };
    stream.write_all(&outcome.written()).await
}

/// Whether a directory can hold its sockets: absolute, and not too long for their paths.
pub(crate) fn fits(directory: &Path, longest: usize) -> bool {
    directory.is_absolute() && directory.as_os_str().len() + STATUS_SOCKET.len() < longest
}

#[cfg(test)]
mod tests;
