//! Processes of pods, read from `/proc` (proc(5), cgroups(7)).
//!
//! Only what everybody may read: no right to trace is needed.

use std::fs;
use std::path::Path;

use countersign_proto::signal::Signal;
use rustix::process::Pid;

use crate::mount::SOURCE_PREFIX;
use crate::signaller::wire::PodUid;
use crate::volume::VolumeId;

/// A process of a pod, in a process namespace below the node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: Pid,
    /// The parent's id; none when it is outside of what is seen here.
    pub(super) parent: Option<Pid>,
    /// Its name as `ps -o comm` shows it.
    pub(super) name: String,
    /// When it began, in clock ticks since the machine did: with the id, what tells it from all others.
    pub(super) started: u64,
    /// Its id in its own namespace.
    pub(super) inner: u32,
    /// Name of its container's cgroup.
    pub(super) container: String,
    caught: u64,
    ignored: u64,
    blocked: u64,
}

/// What a process does about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It has a handler.
    Handles,
    /// It holds the signal back: to take it when it likes, or for a moment.
    Blocks,
    /// It ignores it.
    Ignores,
    /// It has not said anything of it: the signal would end it.
    Ends,
}

impl Process {
    /// Reads process `pid`. `None` when it is gone, about to go, not this pod's, or in the node's own process
    /// namespace: so are the helpers that container runtimes put into the cgroup of a pod.
    pub(super) fn read(proc: &Path, pid: Pid, pod: &PodUid) -> Option<Self> {
        let directory = proc.join(pid.as_raw_nonzero().to_string());
        let file = |name: &str| {
            fs::read(directory.join(name)).map(|text| String::from_utf8_lossy(&text).into_owned()).ok()
        };
        let container = container(&file("cgroup")?, pod)?;
        let stat = Stat::parse(&file("stat")?)?;
        let status = file("status")?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let mask = |name: &str| u64::from_str_radix(field(name)?.trim(), 16).ok();
        let ids: Vec<u32> = field("NSpid")?.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        let [_, .., inner] = *ids else { return None };
        Some(Self {
            pid,
            parent: stat.parent,
            name: stat.name,
            started: stat.started,
            inner,
            container,
            caught: mask("SigCgt")?,
            ignored: mask("SigIgn")?,
            blocked: mask("SigBlk")?,
        })
    }

    /// All processes of a pod.
    pub(super) fn all(proc: &Path, pod: &PodUid) -> std::io::Result<Vec<Self>> {
        let ids = fs::read_dir(proc)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(ids.filter_map(Pid::from_raw).filter_map(|pid| Self::read(proc, pid, pod)).collect())
    }

    /// Whether it sees the files of a volume.
    pub(super) fn sees(&self, proc: &Path, volume: VolumeId) -> bool {
        let table =
            fs::read(proc.join(self.pid.as_raw_nonzero().to_string()).join("mountinfo")).unwrap_or_default();
        let source = format!("{SOURCE_PREFIX}{volume}");
        // proc_pid_mountinfo(5): after the dash come type and source; there is nothing in ours to be escaped.
        String::from_utf8_lossy(&table).lines().any(|line| {
            line.split_once(" - ").is_some_and(|(_, mount)| mount.split(' ').take(2).eq(["tmpfs", &*source]))
        })
    }

    /// What it does about a signal.
    pub(super) fn manner(&self, signal: Signal) -> Manner {
        let bit = 1_u64
            .checked_shl(super::send::number(signal).as_raw().unsigned_abs().saturating_sub(1))
            .unwrap_or(0);
        if self.caught & bit != 0 {
            Manner::Handles
        } else if self.ignored & bit != 0 {
            Manner::Ignores
        } else if self.blocked & bit != 0 {
            Manner::Blocks
        } else {
            Manner::Ends
        }
    }
}

/// What matters of `/proc/<pid>/stat`.
struct Stat {
    name: String,
    parent: Option<Pid>,
    started: u64,
}

impl Stat {
    /// `<pid> (<name>) <state> <parent> …`; the name may hold anything, a closing parenthesis too.
    fn parse(text: &str) -> Option<Self> {
        let (head, rest) = text.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let mut fields = rest.split_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok().and_then(Pid::from_raw);
        // The 22nd of all.
        let started = fields.nth(17)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { name, parent, started })
    }
}

/// Name of the container's cgroup in `/proc/<pid>/cgroup`, if the process is of this pod.
///
/// Kubelet calls a pod's cgroup `pod<uid>` (driver cgroupfs) or `…-pod<uid>.slice` with `_` for `-` (driver systemd);
/// the container's is the next below it. The outermost pod counts, for inside of its own a container may be allowed to
/// make cgroups, and all hierarchies of version 1 have to agree.
fn container(text: &str, pod: &PodUid) -> Option<String> {
    let mut found: Option<String> = None;
    for line in text.lines() {
        let path = line.splitn(3, ':').nth(2)?;
        let mut names = path.split('/');
        let Some(uid) = names.by_ref().find_map(pod_of) else { continue };
        if uid != pod.as_str() {
            return None;
        }
        let container = names.next()?;
        found.get_or_insert_with(|| container.to_owned());
    }
    found
}

/// The uid of the pod whose cgroup has this name.
fn pod_of(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let digits = uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    (digits && !uid.is_empty()).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f3c2a61-93a2-4f57-8f0d-1b7f6a2f9a10";

    fn pod() -> PodUid {
        PodUid::parse(UID).unwrap()
    }

    #[test]
    fn the_cgroups_of_kubelet_and_its_runtimes() {
        let slice = UID.replace('-', "_");
        for (text, name) in [
            (format!("0::/kubepods/besteffort/pod{UID}/1a2b\n"), "1a2b"),
            (format!("0::/kubepods/pod{UID}/1a2b/own/deeper\n"), "1a2b"),
            // From inside a cgroup namespace of one's own.
            (format!("0::/../../../burstable/pod{UID}/1a2b\n"), "1a2b"),
            (
                format!("0::/kubepods.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-1a.scope\n"),
                "cri-containerd-1a.scope",
            ),
            (format!("0::/../../kubepods-pod{slice}.slice/crio-1a.scope/container\n"), "crio-1a.scope"),
            // Version 1: one line a hierarchy, some of them not kubelet's.
            (format!("5:memory:/kubepods/pod{UID}/1a\n1:name=systemd:/kubepods/pod{UID}/1a\n0::/\n"), "1a"),
        ] {
            assert_eq!(container(&text, &pod()).as_deref(), Some(name), "{text}");
        }
    }

    #[test]
    fn what_is_no_container_of_the_pod() {
        let other = UID.replace('0', "1");
        for text in [
            "0::/\n".to_owned(),
            "0::/system.slice/containerd.service\n".to_owned(),
            // A runtime's helper in the pod's own cgroup.
            format!("0::/kubepods/pod{UID}\n"),
            format!("0::/kubepods/pod{other}/1a\n"),
            format!("0::/kubepods/pod{UID}0/1a\n"),
            // Another pod that has made a cgroup of this name inside of its own.
            format!("0::/kubepods/pod{other}/1a/pod{UID}/1b\n"),
            format!("5:memory:/kubepods/pod{UID}/1a\n4:cpu:/kubepods/pod{other}/1a\n"),
            format!("0::/podruntime.slice/pods{UID}/1a\n"),
            "nonsense\n".to_owned(),
        ] {
            assert_eq!(container(&text, &pod()), None, "{text}");
        }
    }

    #[test]
    fn a_name_may_hold_anything() {
        let text = "12 (a) S (b)) R 3 0 0 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.parent, stat.started), ("a) S (b)", Pid::from_raw(3), 4711));
        assert!(Stat::parse(&text.replace(" R ", " Z ")).is_none(), "a zombie hears nothing");
        for text in ["", "12", "12 (a", "12 (a) S 1"] {
            assert!(Stat::parse(text).is_none(), "{text}");
        }
    }
}
