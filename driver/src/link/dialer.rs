//! Who keeps the link up.
//!
//! A connection is lent out only after the agent has been told, over it, which volumes there are. So a publish either
//! runs over the older connection, and its volume is in that list because it is in flight, or it comes after the
//! list. The agent can never drop a volume that was published to it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_proto::agent::agent_client::AgentClient;
use countersign_proto::agent::{AGENT_SOCKET, ReconcileRequest};
use http::Uri;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::channel::Channel;
use super::mailbox::Mailbox;
use super::{Connection, Epoch, Link, refused};
use crate::error::{Error, sentence};
use crate::inflight::{Inflight, Work};
use crate::log::Throttle;
use crate::signals::Signals;
use crate::volume::VolumeId;
use crate::volumes::Volumes;

/// What the agent is called in its requests; nobody looks it up.
const AUTHORITY: &str = "http://countersign-agent";
/// Wait before the agent is dialled again, at first and at most.
const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Time for connecting and telling the agent what there is.
const GREETING: Duration = Duration::from_secs(10);
/// Time between two tries to end volumes at an agent that did not hear of it.
const OWED_AGAIN: Duration = Duration::from_secs(30);

/// What the agent is told of over a new connection, and what it may order over it.
#[derive(Debug)]
pub struct Known {
    /// What is mounted.
    pub volumes: Arc<Volumes>,
    /// What is being worked on.
    pub inflight: Arc<Inflight>,
    /// Who asked for which signal.
    pub signals: Arc<Signals>,
}

/// The task that owns the connection.
#[derive(Debug)]
pub struct Dialer {
    directory: PathBuf,
    agent_uid: u32,
    known: Known,
    link: Arc<Link>,
    lend: watch::Sender<Option<Arc<Connection>>>,
    complaints: Throttle,
}

/// Makes the link to the agent whose sockets are in `directory`. The dialer has to be run.
#[must_use]
pub fn link(directory: PathBuf, agent_uid: u32, known: Known) -> (Arc<Link>, Dialer) {
    let (lend, borrowed) = watch::channel(None);
    let link = Arc::new(Link { lent: borrowed, owed: Mutex::default() });
    let complaints = Throttle::new(Duration::from_secs(30));
    let dialer = Dialer { directory, agent_uid, known, link: Arc::clone(&link), lend, complaints };
    (link, dialer)
}

impl Dialer {
    /// Keeps the link up until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep()).await;
        self.lend.send_replace(None);
    }

    async fn keep(&self) {
        let mut epoch = 0;
        let mut pause = REDIAL.0;
        loop {
            epoch += 1;
            match timeout(GREETING, self.connect(epoch)).await {
                Ok(Ok(connection)) => {
                    pause = REDIAL.0;
                    tracing::info!(epoch, volumes = self.known.volumes.count(), "connected to the agent");
                    self.hold(&connection).await;
                    tracing::warn!(epoch, "the agent went away");
                }
                Ok(Err(error)) => self.complain(&error),
                Err(_) => self.complain(&Error::AgentSilent { seconds: GREETING.as_secs() }),
            }
            sleep(pause).await;
            pause = (pause * 2).min(REDIAL.1);
        }
    }

    fn complain(&self, error: &Error) {
        if let Some(suppressed) = self.complaints.pass(Instant::now()) {
            tracing::warn!(error = sentence(error), suppressed, "no connection to the agent");
        }
    }

    /// Dials both sockets and tells the agent which volumes there are.
    async fn connect(&self, epoch: Epoch) -> Result<Arc<Connection>, Error> {
        let mailbox = Mailbox::dial(&self.directory, self.agent_uid)?;
        let dial = |source| Error::Dial { socket: AGENT_SOCKET, source };
        let stream = UnixStream::connect(self.directory.join(AGENT_SOCKET)).await.map_err(dial)?;
        let found = stream.peer_cred().map_err(dial)?.uid();
        if found != self.agent_uid {
            return Err(Error::Peer { socket: AGENT_SOCKET, found, expected: self.agent_uid });
        }
        let (channel, driving) =
            Channel::open(stream).await.map_err(|error| dial(std::io::Error::other(error)))?;
        let agent = AgentClient::with_origin(channel, Uri::from_static(AUTHORITY));
        let closed = CancellationToken::new();
        let connection = Connection { epoch, agent, mailbox, closed, _driving: driving };

        // In flight first: a publish that ends between the two is in the table by then.
        let mut ids = self.known.inflight.publishing();
        ids.extend(self.known.volumes.ids());
        ids.sort_unstable();
        ids.dedup();
        let message = ReconcileRequest { volume_ids: ids.iter().map(ToString::to_string).collect() };
        let answer = connection.agent.clone().reconcile(message).await;
        let (held, listed) = match answer.map_err(|status| refused("Reconcile", &status)) {
            Ok(answer) => (answer.into_inner().held, true),
            // It is handed every volume anew, and told of each end by itself.
            Err(error @ Error::AgentVersion { .. }) => {
                tracing::warn!(epoch, error = sentence(&error), "going on without the agent's list");
                (Vec::new(), false)
            }
            Err(error) => return Err(error),
        };
        self.known.volumes.held(epoch, held.iter().filter_map(|id| VolumeId::parse(id)));
        // What has gone since the list was made would stay with the agent for good.
        let gone = |id: &VolumeId| {
            self.known.volumes.known(*id).is_none() && !self.known.inflight.is_publishing(*id)
        };
        self.link.owed().retain(|id| !listed || ids.binary_search(id).is_ok());
        self.link.owed().extend(ids.iter().filter(|id| gone(id)));
        Ok(Arc::new(connection))
    }

    /// Lends the connection out until the agent closes it.
    async fn hold(&self, connection: &Arc<Connection>) {
        self.lend.send_replace(Some(Arc::clone(connection)));
        tokio::select! {
            () = connection.mailbox.closed() => {}
            () = self.settle(connection) => {}
            () = self.known.signals.serve(connection.agent.clone()) => {}
        }
        self.lend.send_replace(None);
        connection.closed.cancel();
    }

    /// Tells the agent, again and again, of the ends it has not heard of.
    async fn settle(&self, connection: &Connection) {
        loop {
            let owed: Vec<VolumeId> = self.link.owed().iter().copied().collect();
            for id in owed {
                // Whoever works on the volume right now has the last word on it.
                let Ok(_guard) = self.known.inflight.start(id, Work::Remove) else { continue };
                if !self.link.owed().contains(&id) {
                    continue;
                }
                if self.known.volumes.known(id).is_some() || connection.forget(id).await.is_ok() {
                    self.link.wanted(id);
                }
            }
            sleep(OWED_AGAIN).await;
        }
    }
}
