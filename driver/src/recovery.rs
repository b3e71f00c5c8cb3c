//! What the mount table tells a driver that has just been started.

use crate::error::{Error, sentence};
use crate::fault;
use crate::mount::{self, SOURCE_PREFIX};
use crate::mountinfo;
use crate::target::{Found, KubeletRoot};
use crate::volume::{Place, VolumeId};
use crate::volumes::{Known, Volumes};

/// Finds the volumes that an earlier driver mounted under the kubelet root, and makes those read-only that it left
/// writable. That flag is set on this process's view of the mount; a volume is read-only before it is attached, so
/// there is something to do only after a driver older than this one.
///
/// # Errors
/// [`Error::Path`] when the mount table can't be read. A volume that can't be looked at is logged and left out.
pub fn recover(root: &KubeletRoot, volumes: &Volumes) -> Result<(), Error> {
    let mut found = Vec::new();
    mountinfo::each(|mount| {
        if let Some(volume) = mount.source.strip_prefix(SOURCE_PREFIX)
            && mount.fs_type == "tmpfs"
            && let Some(id) = VolumeId::parse(volume)
            && let Some(place) = root.real().to_str().and_then(|real| Place::parse(real, &mount.point))
        {
            found.push((id, place, mount.id, mount.read_only));
        }
        true
    })?;
    fault::point("recovery.scanned");
    for (id, place, in_table, read_only) in found {
        match take_up(root, &place, id, in_table, read_only) {
            Ok(known) => volumes.remember(id, known),
            Err(error) => {
                tracing::warn!(volume.id = %id, error = sentence(&error), "a volume in the mount table is left alone");
            }
        }
    }
    tracing::info!(volumes = volumes.count(), "read the mount table");
    Ok(())
}

fn take_up(
    root: &KubeletRoot,
    place: &Place,
    id: VolumeId,
    in_table: u64,
    read_only: bool,
) -> Result<Known, Error> {
    let Some(Found::Mount(mounted)) = root.parent(place)?.map(|parent| parent.look()).transpose()? else {
        return Err(Error::NoParent);
    };
    // The table tells where a mount is, the descriptor which one is on top there.
    if VolumeId::of(place) != id || mounted.in_table()? != in_table {
        return Err(Error::Foreign { fs_type: "tmpfs".into(), from: format!("{SOURCE_PREFIX}{id}") });
    }
    if !read_only {
        mount::make_read_only(&mounted.root)?;
        fault::point("recovery.repaired");
        tracing::warn!(volume.id = %id, "a volume was left writable: it is read-only now");
    }
    Ok(Known { mount: mounted.id, held: None, delivered: None })
}
