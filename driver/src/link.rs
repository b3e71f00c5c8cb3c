//! The link to the agent: one connection at a time, watched, and made again when it ends.
//!
//! Every connection has a number, its epoch: what the agent was given over an older one may be lost with it. A
//! connection is lent out only after the agent has been told, over it, which volumes there are. So a publish either
//! runs over the older connection, and its volume is in that list because it is in flight, or it comes after the
//! list. The agent can never drop a volume that was published to it.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_proto::agent::agent_client::AgentClient;
use countersign_proto::agent::{
    AGENT_SOCKET, ForgetRequest, MAILBOX_KEY_BYTES, PublishRequest, ReconcileRequest,
};
use http::Uri;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use crate::error::{Error, sentence};
use crate::inflight::{Inflight, Work};
use crate::link::channel::Driving;
use crate::link::mailbox::Mailbox;
use crate::log::Throttle;
use crate::signals::Signals;
use crate::volume::VolumeId;
use crate::volumes::Volumes;

mod channel;
mod mailbox;

pub(crate) use channel::Channel;

/// What the agent is called in its requests; nobody looks it up.
const AUTHORITY: &str = "http://countersign-agent";
/// Wait before the agent is dialled again, at first and at most.
const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Time for connecting and telling the agent what there is.
const GREETING: Duration = Duration::from_secs(10);
/// Time between two tries to end volumes at an agent that did not hear of it.
const OWED_AGAIN: Duration = Duration::from_secs(30);
/// Time for putting a descriptor into the agent's mailbox.
const HAND_OVER: Duration = Duration::from_secs(10);
/// Time for one Forget.
const FORGET: Duration = Duration::from_secs(2);

/// Number of a connection; the first is 1.
pub type Epoch = u64;

/// A connection to the agent.
#[derive(Debug)]
pub struct Connection {
    /// Its number.
    pub epoch: Epoch,
    agent: AgentClient<Channel>,
    mailbox: Mailbox,
    closed: CancellationToken,
    _driving: Driving,
}

impl Connection {
    /// Puts a descriptor into the agent's mailbox and answers with its key.
    ///
    /// # Errors
    /// [`Error::AgentLost`], [`Error::AgentSilent`] or [`Error::Kernel`].
    pub async fn hand_over(&self, descriptor: OwnedFd) -> Result<[u8; MAILBOX_KEY_BYTES], Error> {
        tokio::select! {
            biased;
            key = self.mailbox.send(descriptor) => key,
            () = self.closed.cancelled() => Err(Error::AgentLost),
            // Its mailbox is full, and it takes nothing out.
            () = sleep(HAND_OVER) => Err(Error::AgentSilent { seconds: HAND_OVER.as_secs() }),
        }
    }

    /// Sends a publish and waits for the agent's answer for `deadline` at most.
    ///
    /// # Errors
    /// What the agent answers, or that it did not.
    pub async fn publish(&self, message: PublishRequest, deadline: Duration) -> Result<(), Error> {
        let mut agent = self.agent.clone();
        self.call("Publish", deadline, |request| async move { agent.publish(request).await }, message).await
    }

    /// Tells the agent that a volume is gone.
    async fn forget(&self, id: VolumeId) -> Result<(), Error> {
        let mut agent = self.agent.clone();
        let message = ForgetRequest { volume_id: id.to_string() };
        match self.call("Forget", FORGET, |request| async move { agent.forget(request).await }, message).await
        {
            // It hears of it with the list of the next connection.
            Err(Error::AgentVersion { .. }) => Ok(()),
            told => told,
        }
    }

    async fn call<Message, Answer, Call>(
        &self,
        name: &'static str,
        deadline: Duration,
        call: impl FnOnce(Request<Message>) -> Call,
        message: Message,
    ) -> Result<(), Error>
    where
        Call: Future<Output = Result<tonic::Response<Answer>, Status>>,
    {
        let mut request = Request::new(message);
        // The agent is told how long it is waited for, and can stop by itself.
        request.set_timeout(deadline);
        let ends = Instant::now() + deadline;
        let silent = Error::AgentSilent { seconds: deadline.as_secs() };
        let answer = tokio::select! {
            biased;
            answer = call(request) => answer,
            () = self.closed.cancelled() => return Err(Error::AgentLost),
            () = tokio::time::sleep_until(ends) => return Err(silent),
        };
        match answer {
            Ok(_) => Ok(()),
            // A status with a cause was made on this side: the agent has not answered.
            Err(status) if std::error::Error::source(&status).is_some() => {
                Err(if Instant::now() >= ends { silent } else { Error::AgentLost })
            }
            Err(status) => Err(refused(name, &status)),
        }
    }
}

/// What the agent has answered to a call in place of doing it.
fn refused(call: &'static str, status: &Status) -> Error {
    let code = status.code();
    if code == Code::Unimplemented {
        return Error::AgentVersion { call };
    }
    // An agent that fails a call cannot mean OK.
    let code = if code == Code::Ok { Code::Unknown } else { code };
    Error::Agent { code, message: status.message().to_owned() }
}

/// The link as the node service sees it.
#[derive(Debug)]
pub struct Link {
    lent: watch::Receiver<Option<Arc<Connection>>>,
    /// Volumes that are gone and whose end the agent has not heard of.
    owed: Mutex<HashSet<VolumeId>>,
}

impl Link {
    /// The connection there is right now.
    #[must_use]
    pub fn now(&self) -> Option<Arc<Connection>> {
        self.lent.borrow().clone()
    }

    /// The connection, waited for if there is none.
    pub async fn within(&self, patience: Duration) -> Option<Arc<Connection>> {
        let mut lent = self.lent.clone();
        let connection = timeout(patience, lent.wait_for(Option::is_some)).await.ok()?.ok()?;
        connection.clone()
    }

    /// A volume is wanted again: the agent is not to be told of an earlier end of it.
    pub fn wanted(&self, id: VolumeId) {
        self.owed().remove(&id);
    }

    /// Tells the agent that a volume is gone. When it does not hear of it now it will later.
    pub async fn forget(&self, id: VolumeId) {
        self.owed().insert(id);
        if let Some(connection) = self.now()
            && connection.forget(id).await.is_ok()
        {
            self.owed().remove(&id);
        } else {
            tracing::debug!(volume.id = %id, "the agent has not heard that the volume is gone: it is told later");
        }
    }

    fn owed(&self) -> MutexGuard<'_, HashSet<VolumeId>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
