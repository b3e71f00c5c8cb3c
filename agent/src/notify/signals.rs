//! Signals are sent by others: here the driver is told whose files have changed, and asked what came of it.
//!
//! The driver knows from kubelet which pod asked for which signal. So an order names a volume, and nothing else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_proto::agent::{SignalOrder, SignalledRequest};
use tokio::sync::{mpsc, oneshot};

use super::{Failed, Told};
use crate::volume::VolumeId;

/// How long an order may take: the driver has them carried out one after another.
const LIMIT: Duration = Duration::from_secs(30);
/// Orders that wait for the driver to take them.
const QUEUE: usize = 256;

/// The orders for the driver, and who waits for what comes of them. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Signals(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// To the driver that asked for orders last.
    orders: Option<mpsc::Sender<SignalOrder>>,
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<SignalledRequest>>,
    ended: bool,
}

/// An order that somebody waits for; nobody does any more when it is dropped.
struct Waiting<'a> {
    order: u64,
    of: &'a Signals,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.of.lock().waiting.remove(&self.order);
    }
}

impl Signals {
    /// The orders from now on, for a driver that asks for them. Those of an earlier one end.
    pub(crate) fn orders(&self) -> mpsc::Receiver<SignalOrder> {
        let (orders, ordered) = mpsc::channel(QUEUE);
        let mut state = self.lock();
        // What the driver before was told is not answered by this one.
        state.waiting.clear();
        state.orders = Some(orders).filter(|_| !state.ended);
        ordered
    }

    /// There are no more orders: whoever waits for them goes.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        (state.ended, state.orders) = (true, None);
    }

    /// Takes what came of an order.
    pub(crate) fn answered(&self, answer: SignalledRequest) {
        if let Some(waiting) = self.lock().waiting.remove(&answer.order) {
            // It has given up a moment ago.
            waiting.send(answer).unwrap_or_default();
        }
    }

    /// Has the pod of a volume signalled.
    pub(super) async fn ask(&self, volume: &VolumeId) -> Result<Told, Failed> {
        let again = |problem: &str| Failed::Again(problem.to_owned());
        let (answer, answered) = oneshot::channel();
        let waiting = {
            let mut state = self.lock();
            state.last += 1;
            let order = SignalOrder { order: state.last, volume_id: volume.as_str().to_owned() };
            let waiting = order.order;
            let Some(orders) = &state.orders else {
                return Err(again("no driver that has signals sent is connected"));
            };
            orders.try_send(order).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => again("too many signals wait for the driver"),
                mpsc::error::TrySendError::Closed(_) => again("the driver has gone away"),
            })?;
            state.waiting.insert(waiting, answer);
            Waiting { order: waiting, of: self }
        };
        let answered = tokio::time::timeout(LIMIT, answered).await;
        drop(waiting);
        match answered {
            Ok(Ok(SignalledRequest { processes: 0, problem, .. })) if problem.is_empty() => Ok(Told::Nobody),
            Ok(Ok(SignalledRequest { processes, problem, .. })) if problem.is_empty() => {
                Ok(Told::Answered(format!("signalled {processes}")))
            }
            Ok(Ok(SignalledRequest { problem, .. })) => Err(Failed::Again(problem)),
            Ok(Err(_)) => Err(again("the driver has gone away")),
            Err(_) => Err(Failed::Again(format!("the driver did not answer within {} s", LIMIT.as_secs()))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
