//! Namespaces of our own: network, mounts and processes. Ports never clash, nothing that is mounted is seen outside,
//! and whatever was started ends with the first process in there, however that ends.
//!
//! The program starts itself anew, twice: under `unshare`, as the first process of the new namespaces, which takes in
//! the orphans that container shims are; and by that one, as what it is meant to be.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::scratch::Scratch;
use rustix::process::{Pid, WaitOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::tools;

/// Which of the three starts this is.
const STAGE: &str = "COUNTERSIGN_CLUSTER_STAGE";
/// The directory of this run.
const DIRECTORY: &str = "COUNTERSIGN_CLUSTER_DIRECTORY";
/// What the control groups of this run lie beneath, in every hierarchy.
const CGROUP: &str = "COUNTERSIGN_CLUSTER_CGROUP";

/// Where this process stands after [`enter`].
pub enum Entered {
    /// In namespaces of its own: go on.
    Inside(Place),
    /// The one that went inside has ended so: end too.
    Ended(ExitCode),
}

/// What a run has to itself.
#[derive(Debug, Clone)]
pub struct Place {
    /// A directory for everything that is written.
    pub directory: PathBuf,
    /// The name of a control group that nobody else uses.
    pub cgroup: String,
}

/// Moves this program into namespaces of its own. To be called first in `main`.
pub fn enter() -> Result<Entered> {
    match std::env::var(STAGE).as_deref() {
        Ok("inside") => {
            let directory = std::env::var_os(DIRECTORY).context(DIRECTORY)?.into();
            Ok(Entered::Inside(Place { directory, cgroup: std::env::var(CGROUP).context(CGROUP)? }))
        }
        Ok("first") => first(),
        Ok(_) | Err(_) => outside(),
    }
}

/// Starts the namespaces, waits for their end and removes what cannot end by itself: directories and control groups.
fn outside() -> Result<Entered> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "a node of Kubernetes needs root (or set KUBECONFIG and use `make e2e` with a cluster that runs)"
    );
    // Here, where the registries can be reached: inside there is no network.
    tools::build_all()?;
    let scratch = Scratch::new()?;
    let cgroup = format!("countersign-{}", std::process::id());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(namespaces(scratch.path(), &cgroup));
    remove_cgroups(&cgroup);
    Ok(Entered::Ended(code(status?)))
}

async fn namespaces(directory: &Path, cgroup: &str) -> Result<ExitStatus> {
    // Made first: a signal in between would end us, and nothing would be removed.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut child = tokio::process::Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(STAGE, "first")
        .env(DIRECTORY, directory)
        .env(CGROUP, cgroup)
        .kill_on_drop(true)
        .spawn()
        .context("starting unshare (package util-linux)")?;
    tokio::select! {
        status = child.wait() => return Ok(status?),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    // The first process of the namespace dies with it, and all others with that one.
    child.kill().await?;
    Ok(child.wait().await?)
}

/// The first process of the namespace: inherits orphans and sees them end.
fn first() -> Result<Entered> {
    let child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(STAGE, "inside")
        .spawn()
        .context("starting anew")?;
    let child = Pid::from_child(&child);
    loop {
        let Some((ended, status)) = rustix::process::wait(WaitOptions::empty())? else { continue };
        if ended == child {
            return Ok(Entered::Ended(code(ExitStatus::from_raw(status.as_raw()))));
        }
    }
}

fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Removes our control groups from every hierarchy, the innermost first. They are empty once the last process has been
/// waited for, which the kernel does in its own time.
fn remove_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path().join(name));
    let groups: Vec<PathBuf> = hierarchies.chain([root.join(name)]).filter(|group| group.is_dir()).collect();
    for _ in 0..100 {
        for group in &groups {
            remove_tree(group);
        }
        if !groups.iter().any(|group| group.exists()) {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // Busy for a moment yet: tried again by the caller.
    fs::remove_dir(group).ok();
}
