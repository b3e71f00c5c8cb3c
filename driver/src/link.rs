//! The link to the agent: one connection at a time, watched, and made again when it ends (`dialer`).
//!
//! Every connection has a number, its epoch: what the agent was given over an older one may be lost with it.

mod channel;
mod dialer;
mod mailbox;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_proto::agent::agent_client::AgentClient;
use countersign_proto::agent::{ForgetRequest, MAILBOX_KEY_BYTES, PublishRequest};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use crate::error::Error;
use crate::link::channel::Driving;
use crate::link::mailbox::Mailbox;
use crate::volume::VolumeId;

pub(crate) use channel::Channel;
pub use dialer::{Dialer, Known, link};

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
