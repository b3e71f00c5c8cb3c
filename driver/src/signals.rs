//! Signals on change, the driver's part: it knows from kubelet which pod asked for which, and has the signaller send
//! them.
//!
//! The agent only says which volume's files have changed. Whom that signals is the driver's own reading of kubelet's
//! request, so an agent that was taken over can send a pod the one signal that this pod asked for, and nothing else.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_proto::agent::agent_client::AgentClient;
use countersign_proto::agent::{SignalOrder, SignalledRequest, SignalsRequest};
use countersign_proto::signal::{ON_CHANGE, SignalTarget};
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::link::Channel;
use crate::request::Publish;
use crate::signaller::wire::{Order, Outcome, PodUid, ask};
use crate::volume::VolumeId;

/// Wait before the agent is asked again for its orders.
const AGAIN: Duration = Duration::from_secs(2);

/// Who asked for which signal, and who sends it.
#[derive(Debug, Default)]
pub struct Signals {
    /// Directory of the signaller's socket; none: no signals are sent.
    signaller: Option<PathBuf>,
    asked: Mutex<HashMap<VolumeId, (PodUid, SignalTarget)>>,
}

impl Signals {
    /// Has them sent by the signaller whose socket is in this directory.
    #[must_use]
    pub fn new(signaller: Option<PathBuf>) -> Self {
        Self { signaller, asked: Mutex::default() }
    }

    /// Whether signals are sent at all.
    #[must_use]
    pub const fn are_sent(&self) -> bool {
        self.signaller.is_some()
    }

    /// Learns what a volume asks for. A driver that has been restarted learns it with kubelet's next republish.
    pub fn learn(&self, want: &Publish) {
        // What can't be read is refused by the agent.
        let target = want.attributes.get(ON_CHANGE).and_then(|text| text.trim_ascii().parse().ok());
        let asked = target.and_then(|target| Some((PodUid::parse(&want.pod.uid)?, target)));
        match asked.filter(|_| self.are_sent()) {
            Some(asked) => self.lock().insert(want.id, asked),
            None => self.lock().remove(&want.id),
        };
    }

    /// Forgets a volume.
    pub fn forget(&self, id: VolumeId) {
        self.lock().remove(&id);
    }

    /// Carries out the agent's orders for as long as the connection lasts; never returns.
    pub(crate) async fn serve(&self, mut agent: AgentClient<Channel>) {
        let Some(signaller) = &self.signaller else { return std::future::pending().await };
        loop {
            let ended = async {
                let mut orders = agent.clone().signals(SignalsRequest {}).await?.into_inner();
                while let Some(order) = orders.message().await? {
                    let outcome = match self.order(&order) {
                        Some(order) => ask(signaller, &order).await,
                        None => Outcome::failed(
                            "the driver does not know yet what the volume asks for: kubelet tells it within 90 s",
                        ),
                    };
                    let Outcome { processes, problem } = outcome;
                    let problem = problem.unwrap_or_default();
                    agent.signalled(SignalledRequest { order: order.order, processes, problem }).await?;
                }
                Ok::<(), Status>(())
            };
            match ended.await {
                Err(status) if status.code() == Code::Unimplemented => {
                    tracing::warn!(
                        "the agent is of a version that has no signals sent: pods that ask for them are not told"
                    );
                    return std::future::pending().await;
                }
                Err(status) => tracing::debug!(%status, "the agent's orders for signals broke off"),
                Ok(()) => {}
            }
            sleep(AGAIN).await;
        }
    }

    fn order(&self, order: &SignalOrder) -> Option<Order> {
        let volume = VolumeId::parse(&order.volume_id)?;
        let (pod, target) = self.lock().get(&volume)?.clone();
        Some(Order { pod, volume, target })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, (PodUid, SignalTarget)>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
