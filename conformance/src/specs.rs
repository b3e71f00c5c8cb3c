//! What csi-sanity 5.6.0 can and can't ask of a node plugin for inline ephemeral volumes.
//!
//! This is the one place where skips are explained. The runner prints it, and fails when a run differs from it.

/// Specs that ask the driver.
pub(crate) const PASSED_BY_DRIVER: usize = 13;
/// Specs that ask the stand-in controller only. They say nothing of the driver.
pub(crate) const PASSED_BY_STAND_IN: usize = 5;
/// What those are beneath.
pub(crate) const STAND_IN: &str = "Controller Service [Controller Server]";

/// Specs that are skipped for one reason.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    /// How their names begin.
    pub(crate) beneath: &'static str,
    /// How many there are.
    pub(crate) specs: usize,
    /// Why they can't be asked.
    pub(crate) why: &'static str,
}

impl Skip {
    /// Whether this is about the spec of that name.
    pub(crate) fn names(&self, spec: &str) -> bool {
        spec.strip_prefix(self.beneath).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }
}

/// All skips.
pub(crate) const SKIPS: &[Skip] = &[
    Skip {
        beneath: "Node Service NodePublishVolume with single node multi writer capability",
        specs: 1,
        why: "SINGLE_NODE_MULTI_WRITER is not offered: an inline volume belongs to one pod and is read-only",
    },
    Skip {
        beneath: "Node Service NodeStageVolume",
        specs: 3,
        why: "STAGE_UNSTAGE_VOLUME is not offered: kubelet stages no inline volume",
    },
    Skip { beneath: "Node Service NodeUnstageVolume", specs: 2, why: "as NodeStageVolume" },
    Skip {
        beneath: "Node Service NodeGetVolumeStats",
        specs: 4,
        why: "GET_VOLUME_STATS is not offered: kubelet would ask once a minute for each volume, for metrics that it makes of persistent volumes alone; what a volume may hold is capped",
    },
    Skip {
        beneath: "Node Service NodeExpandVolume",
        specs: 4,
        why: "EXPAND_VOLUME is not offered: an inline volume has no size that could be claimed",
    },
    Skip {
        beneath: "Node Service NodeGetVolumeHealth",
        specs: 2,
        why: "an alpha call, behind a capability that is not offered; trouble with a volume shows in the agent's metrics and log",
    },
    Skip { beneath: "Node Service NodeGetStorageHealth", specs: 1, why: "as NodeGetVolumeHealth" },
    Skip {
        beneath: "Controller Service [Controller Server] GetCapacity",
        specs: 1,
        why: "there is no controller: Kubernetes creates no inline volume. The stand-in offers nothing",
    },
    Skip {
        beneath: "Controller Service [Controller Server] ListVolumes",
        specs: 4,
        why: "as GetCapacity; one of the four csi-sanity itself leaves out",
    },
    Skip {
        beneath: "Controller Service [Controller Server] CreateVolume",
        specs: 13,
        why: "as GetCapacity; the stand-in answers it for the specs of the node, and is not what is tested",
    },
    Skip { beneath: "Controller Service [Controller Server] DeleteVolume", specs: 3, why: "as CreateVolume" },
    Skip {
        beneath: "Controller Service [Controller Server] ControllerPublishVolume",
        specs: 7,
        why: "as GetCapacity: attachRequired is false, nothing is attached",
    },
    Skip {
        beneath: "Controller Service [Controller Server] ControllerUnpublishVolume",
        specs: 1,
        why: "as ControllerPublishVolume",
    },
    Skip {
        beneath: "Controller Service [Controller Server] volume lifecycle",
        specs: 2,
        why: "as ControllerPublishVolume; the same two without attaching are asked as «Node Service should work» and «should be idempotent»",
    },
    Skip { beneath: "ExpandVolume [Controller Server]", specs: 3, why: "as GetCapacity" },
    Skip { beneath: "ModifyVolume [Controller Server]", specs: 6, why: "as GetCapacity" },
    Skip { beneath: "ControllerGetVolumeHealth [Controller Server]", specs: 2, why: "as GetCapacity" },
    Skip { beneath: "ControllerListVolumeHealth [Controller Server]", specs: 1, why: "as GetCapacity" },
    Skip {
        beneath: "CreateSnapshot [Controller Server]",
        specs: 6,
        why: "there is nothing to make a snapshot of: what is in a volume comes from a store and is kept nowhere else",
    },
    Skip { beneath: "GetSnapshot [Controller Server]", specs: 3, why: "as CreateSnapshot" },
    Skip { beneath: "ListSnapshots [Controller Server]", specs: 7, why: "as CreateSnapshot" },
    Skip { beneath: "DeleteSnapshot [Controller Server]", specs: 3, why: "as CreateSnapshot" },
    Skip {
        beneath: "GroupController Service [GroupController Server]",
        specs: 1,
        why: "as CreateSnapshot: the group controller is about snapshots",
    },
    Skip {
        beneath: "GroupController Service [GroupController VolumeGroupSnapshots]",
        specs: 5,
        why: "as CreateSnapshot",
    },
];
