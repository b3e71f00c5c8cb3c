//! What is said of a turn: in the log when something changes, and as an event where kubelet would not see it.

use std::time::SystemTime;

use tracing::{debug, info, warn};

use crate::Error;
use crate::files::Change;
use crate::identity::Identity;
use crate::kubernetes::events::{Reason, Recorder};
use crate::turn::Turned;
use crate::volume::Volume;

/// Says what changed: trouble once when it begins, and once when it ends.
pub(super) fn note(volume: &mut Volume, turned: &Turned, events: &Recorder, now: SystemTime) {
    let label = turned.trouble.as_ref().map(Error::label);
    let (volume_id, pod) = (&volume.id, &volume.workload);
    match (&turned.trouble, volume.trouble) {
        (Some(error), _) if !volume.established && turned.result.is_ok() => {
            warn!(%volume_id, %pod, %error, "the pod starts with secrets as the node read them last (stale-ok)");
        }
        (Some(error), before) if before != label => {
            warn!(
                %volume_id, %pod, %error, files_kept = volume.established, left_out = turned.left_out,
                "the volume could not be brought up to date"
            );
            // The trouble of a first publish is kubelet's to tell.
            if volume.established {
                let files = if turned.left_out == 0 {
                    "the files stay as they were"
                } else {
                    "files were taken away"
                };
                events.tell(pod, Reason::RefreshFailing, &format!("{files}: {error}"));
            }
        }
        (None, Some(before)) => {
            info!(%volume_id, %pod, was = before, "the volume is up to date again");
            if volume.established {
                events.tell(pod, Reason::RefreshRecovered, "the files are up to date again");
            }
        }
        _ => debug!(%volume_id, %pod, ok = turned.result.is_ok(), "turn"),
    }
    if let Ok(Change::Replaced { files, bytes, .. }) = &turned.result {
        info!(%volume_id, %pod, files, bytes, left_out = turned.left_out, "files written");
    }
    if let Some(identity) = volume.identity.as_deref().filter(|identity| ending(identity, now)) {
        let end = identity.x509.not_after;
        if volume.ending != Some(end) {
            volume.ending = Some(end);
            let why = turned.trouble.as_ref().map_or_else(String::new, |error| format!(": {error}"));
            let message = format!(
                "{} ends at {} and could not be renewed{why}",
                identity.spiffe_id,
                humantime::format_rfc3339_seconds(end)
            );
            warn!(volume_id = %volume.id, pod = %volume.workload, "{message}");
            events.tell(&volume.workload, Reason::IdentityEnding, &message);
        }
    }
    volume.trouble = label;
}

/// Whether an identity is in the last quarter of its life: by then it should have been renewed long ago.
fn ending(identity: &Identity, now: SystemTime) -> bool {
    let svid = &identity.x509;
    let life = svid.not_after.duration_since(svid.not_before).unwrap_or_default();
    svid.not_after.duration_since(now).unwrap_or_default() * 4 < life
}
