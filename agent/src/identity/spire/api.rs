//! The two ways to ask SPIRE about a pod, and how one of them is settled on where both are configured.

use std::io;
use std::time::Duration;

use futures_util::stream::BoxStream;
use tokio::sync::watch;
use tonic::Status;
use tracing::{info, warn};

use super::answer::{Trouble, Us, no_entry, no_entry_for, of_broker, of_delegated, unavailable};
use super::broker::Broker;
use super::delegated::Delegated;
use super::keys::Keys;
use super::material::Update;
use crate::identity::Workload;
use crate::secret::Secret;

/// How often, and at what interval, a broker socket that is not there is looked for: a SPIRE agent that starts makes
/// its sockets one after another.
const KNOCKS: (u32, Duration) = (5, Duration::from_secs(1));
/// How long a pod waits for it to be settled.
const SETTLING: Duration = Duration::from_secs(10);

/// How SPIRE is asked.
#[derive(Debug)]
pub(super) enum Api {
    /// SPIRE attests the pod.
    Broker(Broker),
    /// We say what the pod is.
    Delegated(Box<Delegated>),
    /// The first where SPIRE has it, else the second.
    Either(Box<Either>),
}

/// Both ways, one of which is settled on once.
#[derive(Debug)]
pub(super) struct Either {
    broker: Broker,
    delegated: Delegated,
    by_broker: watch::Sender<Option<bool>>,
}

/// One way.
#[derive(Debug, Clone, Copy)]
enum Way<'a> {
    Broker(&'a Broker),
    Delegated(&'a Delegated),
}

impl Either {
    pub(super) fn new(broker: Broker, delegated: Delegated) -> Self {
        Self { broker, delegated, by_broker: watch::Sender::default() }
    }

    fn settled(&self) -> Option<Way<'_>> {
        let by_broker = *self.by_broker.borrow();
        by_broker.map(
            |by_broker| {
                if by_broker { Way::Broker(&self.broker) } else { Way::Delegated(&self.delegated) }
            },
        )
    }

    /// Settles on a way, and keeps to it: the larger power is never taken because the smaller one failed once.
    async fn settle(&self) {
        // Until then nobody knows whether a socket is missing or its SPIRE agent.
        self.broker.own().known().await;
        let mut knocks = 0;
        let missing = loop {
            match self.broker.knock().await {
                Ok(()) => break None,
                Err(error) if is_missing(&error) => {
                    knocks += 1;
                    if knocks == KNOCKS.0 {
                        break Some(error);
                    }
                }
                // Somebody is there; what is wrong with it is said to whoever asks for a pod.
                Err(error) => {
                    warn!(%error, "the broker socket is there and can't be used");
                    break None;
                }
            }
            tokio::time::sleep(KNOCKS.1).await;
        };
        match &missing {
            None => info!(source = "spire-broker", "SPIRE has a broker socket: it attests the pods itself"),
            Some(reason) => warn!(
                source = "spire-delegated", %reason,
                "SPIRE has no broker socket: this agent says what the pods are, and may have every identity of this \
                 node; SPIRE 1.15.2 or newer with a broker block makes that unnecessary from the next start on"
            ),
        }
        self.by_broker.send_replace(Some(missing.is_none()));
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl Api {
    async fn way(&self) -> Result<Way<'_>, Trouble> {
        let either = match self {
            Self::Broker(broker) => return Ok(Way::Broker(broker)),
            Self::Delegated(delegated) => return Ok(Way::Delegated(delegated)),
            Self::Either(either) => either,
        };
        let mut settled = either.by_broker.subscribe();
        let settling = settled.wait_for(Option::is_some);
        tokio::time::timeout(SETTLING, settling).await.ok();
        either.settled().ok_or_else(|| {
            let trouble = self.reached().err().unwrap_or_default();
            Trouble::Down(unavailable(format!("SPIRE: {trouble}")))
        })
    }

    /// Everything SPIRE says of the pod from now on.
    pub(super) async fn subscribe(
        &self,
        workload: &Workload,
    ) -> Result<BoxStream<'static, Result<Update, Status>>, Trouble> {
        let meaning = |status: &Status| self.meaning(status, workload);
        match self.way().await? {
            Way::Broker(broker) => broker.subscribe(workload).await.map_err(|status| meaning(&status)),
            Way::Delegated(delegated) => delegated.subscribe(workload, meaning).await,
        }
    }

    /// The pod's JWT-SVIDs for `audience`, by SPIFFE ID.
    pub(super) async fn jwts(
        &self,
        workload: &Workload,
        audience: &str,
        spiffe_id: &str,
    ) -> Result<Vec<(String, Secret)>, Trouble> {
        let meaning = |status: &Status| self.meaning(status, workload);
        match self.way().await? {
            Way::Broker(broker) => {
                broker.jwts(workload, audience, spiffe_id).await.map_err(|status| meaning(&status))
            }
            Way::Delegated(delegated) => delegated.jwts(workload, audience, meaning).await,
        }
    }

    /// The keys that sign JWT-SVIDs of the trust domain.
    pub(super) async fn keys(&self) -> Result<&Keys, Trouble> {
        Ok(match self.way().await? {
            Way::Broker(broker) => broker.own().keys(),
            Way::Delegated(delegated) => delegated.keys(),
        })
    }

    /// Our SPIFFE ID, where it is known.
    pub(super) fn us(&self) -> Option<String> {
        match self {
            Self::Broker(broker) => broker.own().id(),
            Self::Delegated(_) => None,
            Self::Either(either) => either.broker.own().id(),
        }
    }

    /// Whether SPIRE knows us; else why not.
    pub(super) fn reached(&self) -> Result<(), String> {
        match self {
            Self::Broker(broker) => broker.own().living().map(drop),
            Self::Delegated(delegated) => delegated.reached(),
            Self::Either(either) => match either.settled() {
                Some(Way::Delegated(delegated)) => delegated.reached(),
                Some(Way::Broker(broker)) => broker.own().living().map(drop),
                None => {
                    either.broker.own().living()?;
                    Err("it is being looked whether SPIRE has a broker socket".to_owned())
                }
            },
        }
    }

    /// What a refusal means.
    pub(super) fn meaning(&self, status: &Status, workload: &Workload) -> Trouble {
        let us = self.us();
        let delegated = match self {
            Self::Broker(_) => false,
            Self::Delegated(_) => true,
            Self::Either(either) => matches!(either.settled(), Some(Way::Delegated(_))),
        };
        let meaning = if delegated { of_delegated } else { of_broker };
        meaning(status, workload, Us(us.as_deref()))
    }

    /// What it means that SPIRE has no SVID for the pod.
    pub(super) fn no_entry(&self, workload: &Workload) -> Trouble {
        let told = match self {
            Self::Broker(_) => None,
            Self::Delegated(delegated) => delegated.told(workload),
            Self::Either(either) => either.delegated.told(workload),
        };
        told.map_or_else(|| no_entry(workload), |selectors| no_entry_for(workload, &selectors))
    }

    /// Keeps up what the way itself needs, for ever.
    pub(super) async fn follow(&self) {
        match self {
            Self::Broker(broker) => broker.own().follow().await,
            Self::Delegated(delegated) => delegated.follow().await,
            Self::Either(either) => {
                let delegated = async {
                    either.settle().await;
                    if let Some(Way::Delegated(delegated)) = either.settled() {
                        delegated.follow().await;
                    }
                };
                tokio::join!(either.broker.own().follow(), delegated);
            }
        }
    }
}
