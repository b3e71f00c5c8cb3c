//! SIGTERM and SIGINT: the first asks to end, the second ends.

use std::future::Future;

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Runs `work` and cancels its token at the first signal. A second signal does not wait for it.
pub async fn until_asked_to_end<F, W>(work: W) -> anyhow::Result<()>
where
    W: FnOnce(CancellationToken) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut asked = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let shutdown = CancellationToken::new();
    let work = work(shutdown.clone());
    tokio::pin!(work);
    tokio::select! {
        ended = &mut work => return ended,
        signal = asked() => info!(signal, "ending"),
    }
    shutdown.cancel();
    tokio::select! {
        ended = &mut work => ended,
        signal = asked() => bail!("{signal} a second time: ended without waiting"),
    }
}
