//! The status socket: who connects reads one JSON line. The agent serves it on as part of its health.

use std::path::Path;
use std::sync::Arc;

use countersign_proto::agent::STATUS_SOCKET;
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::identity::VERSION;
use crate::link::Link;
use crate::mount::Kernel;
use crate::registration::Standing;
use crate::sockets::{self, Audience};
use crate::volumes::Volumes;

/// The line. Fields are only ever added.
#[derive(Debug, Serialize)]
struct Line<'a> {
    version: &'static str,
    registered: bool,
    registration_error: Option<&'a str>,
    /// Why this driver serves nobody: another one does, or kubelet is not where it was told.
    standing_by: Option<&'a str>,
    volumes: usize,
    agent_connected: bool,
    noswap: bool,
    clone: String,
}

/// Where the line comes from.
#[derive(Debug)]
pub struct Report {
    /// How the registration stands.
    pub standing: watch::Receiver<Standing>,
    /// What is mounted.
    pub volumes: Arc<Volumes>,
    /// The agent.
    pub link: Arc<Link>,
    /// What this kernel can do.
    pub kernel: Kernel,
}

impl Report {
    /// The line as things are now.
    #[must_use]
    pub fn line(&self) -> String {
        let standing = self.standing.borrow();
        let line = Line {
            version: VERSION,
            registered: *standing == Standing::Registered,
            registration_error: match &*standing {
                Standing::Refused(error) => Some(error),
                Standing::Waiting | Standing::Registered => None,
            },
            standing_by: None,
            volumes: self.volumes.count(),
            agent_connected: self.link.now().is_some(),
            noswap: self.kernel.noswap,
            clone: self.kernel.cloning.to_string(),
        };
        line.text()
    }
}

impl Line<'_> {
    fn text(&self) -> String {
        // A struct of plain fields always has a JSON form.
        let mut text = serde_json::to_string(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Stands by, for this reason, until `over`: the process lives and is not ready, and nothing restarts it in vain. The log
/// and the status say why.
///
/// # Errors
/// [`Error::Path`].
pub async fn stand_by<T>(link_dir: &Path, reason: &str, over: impl Future<Output = T>) -> Result<T, Error> {
    tracing::error!(error = reason, "standing by");
    let listener = listen(&link_dir.join(STATUS_SOCKET))?;
    let (ended, line) = (CancellationToken::new(), standing_by(reason));
    let waiting = async {
        let outcome = over.await;
        ended.cancel();
        outcome
    };
    Ok(tokio::join!(waiting, serve(listener, || line.clone(), ended.clone())).0)
}

/// The line of a driver that serves nobody, for this reason.
#[must_use]
fn standing_by(reason: &str) -> String {
    let line = Line {
        version: VERSION,
        registered: false,
        registration_error: None,
        standing_by: Some(reason),
        volumes: 0,
        agent_connected: false,
        noswap: false,
        clone: String::new(),
    };
    line.text()
}

/// Listens for readers of the status. It holds nothing that the agent, the only other user of the directory, may
/// not read, so everyone who reaches it may.
///
/// # Errors
/// [`Error::Path`].
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    sockets::listen(path, Audience::Everyone)
}

/// Answers each connection with the line, until `stop`.
pub async fn serve(listener: UnixListener, line: impl Fn() -> String, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => tell(&stream, &line()),
            // Out of descriptors, most likely: what is waiting stays waiting.
            Err(_) => sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

/// The line is far smaller than a socket's buffer: it is written at once, or the reader has gone.
fn tell(stream: &UnixStream, line: &str) {
    if let Err(error) = stream.try_write(line.as_bytes()) {
        tracing::debug!(%error, "a reader of the status went away");
    }
}
