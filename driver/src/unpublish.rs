//! Unpublishing: it ends, whatever there was or was not.

use crate::error::{Error, sentence};
use crate::fault;
use crate::inflight::Work;
use crate::node::Volumes;
use crate::request::Unpublish;

/// Unmounts a volume, removes its target and tells the agent.
///
/// # Errors
/// [`Error::Foreign`] when somebody else's mount is there, [`Error::Busy`], or what the kernel refused.
pub(crate) async fn unpublish(node: &Volumes, gone: Unpublish) -> Result<(), Error> {
    let _guard = node.inflight.start(gone.id, Work::Remove)?;
    let removed = match node.root.parent(&gone.place)? {
        None => Ok(()),
        Some(parent) => {
            fault::point("unpublish.resolved");
            parent.unmount(node.volumes.known(gone.id).map(|known| known.mount))?;
            fault::point("unpublish.unmounted");
            parent.remove()
        }
    };
    node.volumes.forget(gone.id);
    node.signals.forget(gone.id);
    fault::point("unpublish.removed");
    // Not awaited for its outcome: the agent may be down, and hears of it when it is back.
    node.link.forget(gone.id).await;
    fault::point("unpublish.forgotten");
    match &removed {
        Ok(()) => tracing::info!(volume.id = %gone.id, "unpublished"),
        Err(error) => {
            tracing::error!(volume.id = %gone.id, error = sentence(error), "unpublished, but not removed");
        }
    }
    removed
}
