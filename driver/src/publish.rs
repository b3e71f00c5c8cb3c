//! Publishing: fetch before attach on the first one, never take anything away on those that follow.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, sentence};
use crate::fault;
use crate::inflight::Work;
use crate::link::Connection;
use crate::mount::{self, Cloning, Tmpfs};
use crate::node::Volumes;
use crate::request::Publish;
use crate::target::{Found, MountId, Mounted, Parent};
use crate::volumes::Known;

/// Time the agent has for filling a volume; kubelet waits for two minutes.
pub(crate) const FILL: Duration = Duration::from_secs(90);
/// Time the agent has for taking note of a republish: its outcome changes nothing for kubelet.
const REFRESH: Duration = Duration::from_secs(30);
/// Time a first publish waits for the agent to be connected, so that a restart of it goes unnoticed.
const PATIENCE: Duration = Duration::from_secs(1);

/// Publishes a volume, or publishes it again.
///
/// # Errors
/// Nothing of the volume is left on the node after one, unless it was mounted before.
pub(crate) async fn publish(node: &Volumes, want: Publish) -> Result<(), Error> {
    let _guard = node.inflight.start(want.id, Work::Publish)?;
    node.link.wanted(want.id);
    let parent = node.root.parent(&want.place)?.ok_or(Error::NoParent)?;
    match parent.look()? {
        Found::Mount(mounted) => republish(node, &want, mounted).await,
        Found::Nothing | Found::Directory(_) => first(node, &want, &parent).await,
    }?;
    node.signals.learn(&want);
    Ok(())
}

async fn first(node: &Volumes, want: &Publish, parent: &Parent) -> Result<(), Error> {
    fault::point("publish.resolved");
    let outcome = match node.link.within(PATIENCE).await {
        // Nothing has been made yet; what an earlier try left is removed all the same.
        None => Err(Error::AgentAbsent),
        Some(connection) => {
            let filled = fill(node, want, parent, &connection).await;
            if filled.is_err() {
                undo(node, want, parent).await;
            }
            filled
        }
    };
    if outcome.is_err() {
        tidy(parent);
    }
    outcome
}

async fn fill(node: &Volumes, want: &Publish, parent: &Parent, connection: &Connection) -> Result<(), Error> {
    let capacity = node.capacity;
    let mount =
        node.kernel.tmpfs(&Tmpfs { id: want.id, owner: node.agent_uid, group: want.fs_group, capacity })?;
    fault::point("publish.made");
    let send = async |descriptor: OwnedFd, provisional: bool| {
        let key = connection.hand_over(descriptor).await?;
        fault::point("publish.handed");
        connection.publish(want.for_agent(&key, provisional, &node.offer()), FILL).await
    };
    match node.kernel.cloning {
        Cloning::Detached => {
            let clone = mount::writable_clone(&mount)?;
            mount::make_read_only(&mount)?;
            fault::point("publish.cloned");
            send(clone, false).await?;
            fault::point("publish.filled");
            attach(&mount, parent)?;
        }
        Cloning::Attached => {
            let copy = mount.try_clone().map_err(|error| Error::Kernel {
                step: "copy the descriptor of the volume",
                source: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
            })?;
            send(copy, true).await?;
            fault::point("publish.filled");
            // Before it is attached: nobody else ever sees it writable. The agent has closed its descriptor.
            mount::make_read_only(&mount)?;
            attach(&mount, parent)?;
            let clone = mount::writable_clone(&mount)?;
            fault::point("publish.cloned");
            send(clone, false).await?;
        }
    }
    let delivered = Some((connection.epoch, want.fingerprint(&node.hasher)));
    let known = Known { mount: MountId::of(&mount)?, held: Some(connection.epoch), delivered };
    node.volumes.remember(want.id, known);
    fault::point("publish.remembered");
    tracing::info!(volume.id = %want.id, pod.namespace = want.pod.namespace, pod.name = want.pod.name, "published");
    Ok(())
}

fn attach(mount: &OwnedFd, parent: &Parent) -> Result<(), Error> {
    let target = parent.make()?;
    fault::point("publish.directory");
    mount::attach(mount, &target)?;
    fault::point("publish.attached");
    Ok(())
}

/// Undoes a first publish: nobody calls unpublish after a final error.
async fn undo(node: &Volumes, want: &Publish, parent: &Parent) {
    if let Err(error) = parent.unmount(None) {
        tracing::error!(volume.id = %want.id, error = sentence(&error), "a failed publish left its mount");
    }
    node.volumes.forget(want.id);
    node.link.forget(want.id).await;
}

/// Removes the target directory when it is empty.
fn tidy(parent: &Parent) {
    if let Err(error) = parent.remove() {
        tracing::warn!(error = sentence(&error), "a failed publish left its target directory");
    }
}

async fn republish(node: &Volumes, want: &Publish, mounted: Mounted) -> Result<(), Error> {
    let known = match node.volumes.known(want.id) {
        Some(known) if known.mount == mounted.id => known,
        _ => {
            let owner = mounted.owner()?;
            if owner != want.id {
                let from = format!("{}{owner}", mount::SOURCE_PREFIX);
                return Err(Error::Foreign { fs_type: "tmpfs".into(), from });
            }
            let known = Known { mount: mounted.id, held: None, delivered: None };
            node.volumes.remember(want.id, known);
            known
        }
    };
    let Some(connection) = node.link.now() else {
        complain(node, want, &Error::AgentAbsent);
        return Ok(());
    };
    let delivered = Some((connection.epoch, want.fingerprint(&node.hasher)));
    if known.delivered == delivered {
        return Ok(());
    }
    let told = tell(node, want, &mounted.root, &connection, known.held == Some(connection.epoch)).await;
    let known = match told {
        Ok(()) => Known { held: Some(connection.epoch), delivered, ..known },
        Err(error) => {
            complain(node, want, &error);
            // Perhaps the agent has no descriptor after all: the next republish brings one.
            Known { held: None, delivered: None, ..known }
        }
    };
    node.volumes.remember(want.id, known);
    Ok(())
}

async fn tell(
    node: &Volumes,
    want: &Publish,
    root: &OwnedFd,
    connection: &Connection,
    held: bool,
) -> Result<(), Error> {
    fault::point("republish.begun");
    let key = if held {
        Vec::new()
    } else {
        let clone = mount::writable_clone(root)?;
        fault::point("republish.cloned");
        connection.hand_over(clone).await?.to_vec()
    };
    connection.publish(want.for_agent(&key, false, &node.offer()), REFRESH).await
}

fn complain(node: &Volumes, want: &Publish, error: &Error) {
    if let Some(suppressed) = node.complaints.pass(Instant::now()) {
        tracing::warn!(
            volume.id = %want.id,
            pod.namespace = want.pod.namespace,
            pod.name = want.pod.name,
            error = sentence(error),
            suppressed,
            "a republish did not reach the agent: the volume keeps its files"
        );
    }
}
