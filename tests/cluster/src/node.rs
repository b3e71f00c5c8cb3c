//! What is seen of a pod's volumes on the node, and what can be done to its processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::mount::{self, Mount};
use rustix::process::{Pid, Signal, kill_process};

use crate::layout::KUBELET;

/// Our mounts that belong to a pod.
pub fn volumes(pod_uid: &str) -> Result<Vec<Mount>> {
    // Whatever kubelet's root is.
    let own = format!("/pods/{pod_uid}/");
    let ours = |mount: &Mount| {
        mount.source.starts_with("countersign:") && mount.point.to_string_lossy().contains(&own)
    };
    Ok(mount::beneath(Path::new("/var/lib"))?.into_iter().filter(ours).collect())
}

/// Kubelet's directory of a pod, where its root is the usual one.
pub fn directory(pod_uid: &str) -> PathBuf {
    Path::new(KUBELET).join("pods").join(pod_uid)
}

/// Processes whose program has this name.
pub fn processes(name: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let program = line.split(|&byte| byte == 0).next().unwrap_or_default();
        if Path::new(&*String::from_utf8_lossy(program)).file_name().is_some_and(|file| file == name) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The driver on this node.
pub fn driver() -> Result<i32> {
    one("countersign-driver", |_| true)
}

/// The agent on this node.
pub fn agent() -> Result<i32> {
    one("countersign-agent", |arguments| arguments.contains("\0run\0"))
}

fn one(name: &str, chosen: impl Fn(&str) -> bool) -> Result<i32> {
    let mut all = processes(name)?;
    all.retain(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        chosen(&String::from_utf8_lossy(&line))
    });
    ensure!(all.len() < 2, "{} processes {name}", all.len());
    all.pop().with_context(|| format!("no {name} runs"))
}

/// Sends a signal.
pub fn signal(pid: i32, signal: Signal) -> Result<()> {
    kill_process(Pid::from_raw(pid).context("a process id")?, signal).with_context(|| format!("{signal:?}"))
}

/// Waits until there is exactly one: while a node comes up again, a container may be started and replaced.
pub async fn settled(find: impl Fn() -> Result<i32>) -> Result<i32> {
    crate::pods::until(Duration::from_secs(90), "exactly one process", async || Ok(find().ok())).await
}

/// Waits until another process is in the place of `old`.
pub async fn replaced(old: i32, find: impl Fn() -> Result<i32>) -> Result<i32> {
    crate::pods::until(Duration::from_secs(90), "another process", async || {
        Ok(find().ok().filter(|&now| now != old))
    })
    .await
}
