//! The two ways to ask SPIRE about a pod.

use futures_util::stream::BoxStream;
use tonic::Status;

use super::answer::{Trouble, Us, of_broker};
use super::broker::Broker;
use super::material::Update;
use crate::identity::Workload;
use crate::secret::Secret;

/// One way.
#[derive(Debug)]
pub(super) enum Api {
    /// SPIRE attests the pod.
    Broker(Broker),
}

impl Api {
    /// Everything SPIRE says of the pod from now on.
    pub(super) async fn subscribe(
        &self,
        workload: &Workload,
    ) -> Result<BoxStream<'static, Result<Update, Status>>, Status> {
        match self {
            Self::Broker(broker) => broker.subscribe(workload).await,
        }
    }

    /// The pod's JWT-SVIDs for `audience`, by SPIFFE ID.
    pub(super) async fn jwts(
        &self,
        workload: &Workload,
        audience: &str,
        spiffe_id: &str,
    ) -> Result<Vec<(String, Secret)>, Status> {
        match self {
            Self::Broker(broker) => broker.jwts(workload, audience, spiffe_id).await,
        }
    }

    /// Our SPIFFE ID, once it is known.
    pub(super) fn us(&self) -> Option<String> {
        match self {
            Self::Broker(broker) => broker.own().id(),
        }
    }

    /// Whether SPIRE knows us; else why not.
    pub(super) fn reached(&self) -> Result<(), String> {
        match self {
            Self::Broker(broker) => broker.own().living().map(drop),
        }
    }

    /// What a refusal means.
    pub(super) fn meaning(&self, status: &Status, workload: &Workload) -> Trouble {
        let us = self.us();
        match self {
            Self::Broker(_) => of_broker(status, workload, Us(us.as_deref())),
        }
    }

    /// Keeps up what the way itself needs, for ever.
    pub(super) async fn follow(&self) {
        match self {
            Self::Broker(broker) => broker.own().follow().await,
        }
    }
}
