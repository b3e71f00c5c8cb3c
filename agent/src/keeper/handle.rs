//! Speaking to the keeper.

use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::volume::{Publish, VolumeId};

/// Where the answer to a publish goes.
pub(super) type Reply = oneshot::Sender<Result<(), Error>>;

/// What can be asked of the keeper, and where the answer goes.
#[derive(Debug)]
pub(super) enum Command {
    Publish(Box<Publish>, Reply),
    Forget(VolumeId, oneshot::Sender<()>),
    Reconcile(Vec<VolumeId>, oneshot::Sender<Vec<VolumeId>>),
    Ping(oneshot::Sender<()>),
}

/// Speaks to the keeper.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Command>);

impl Handle {
    pub(super) fn new(inbox: mpsc::Sender<Command>) -> Self {
        Self(inbox)
    }

    /// Fills a volume, or takes in what a republish brings; answers when the files are there.
    pub async fn publish(&self, publish: Publish) -> Result<(), Error> {
        self.ask(|reply| Command::Publish(Box::new(publish), reply)).await?
    }

    /// Ends a volume. No error if there is none.
    pub async fn forget(&self, id: VolumeId) -> Result<(), Error> {
        self.ask(|reply| Command::Forget(id, reply)).await
    }

    /// Ends all volumes but `ids`; returns those of them that are held with a directory.
    pub async fn reconcile(&self, ids: Vec<VolumeId>) -> Result<Vec<VolumeId>, Error> {
        self.ask(|reply| Command::Reconcile(ids, reply)).await
    }

    /// Answers if the keeper is alive.
    pub async fn ping(&self) -> Result<(), Error> {
        self.ask(Command::Ping).await
    }

    async fn ask<A>(&self, command: impl FnOnce(oneshot::Sender<A>) -> Command) -> Result<A, Error> {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).await.map_err(|_| Error::ShuttingDown)?;
        answer.await.map_err(|_| Error::ShuttingDown)
    }
}
