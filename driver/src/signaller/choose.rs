//! Whom of a pod's processes a signal is for.

use countersign_proto::signal::SignalTarget;

use crate::signaller::proc::Process;

/// The processes of a pod that are meant.
///
/// Without a name: the main process of each container, which is the oldest in its cgroup, for a container begins with
/// it and ends with it. (Its id is 1 only where the pod's containers do not share their process namespace.) With a
/// name: those of that name whose parent has another one, so that of a server and its workers the server is told.
pub(super) fn choose<'a>(all: &'a [Process], target: &SignalTarget) -> Vec<&'a Process> {
    let chosen = |process: &&Process| match &target.process {
        None => !all.iter().any(|other| {
            other.container == process.container
                && (other.started, other.inner) < (process.started, process.inner)
        }),
        Some(name) => {
            let is_parent = |other: &Process| Some(other.pid) == process.parent && name.is(&other.name);
            name.is(&process.name) && !all.iter().any(is_parent)
        }
    };
    all.iter().filter(chosen).collect()
}
