//! Namespaces of our own: network, mounts and processes. Ports never clash, nothing that is mounted is seen outside,
//! and whatever was started ends with the first process in there, however that ends.
//!
//! The program starts itself anew, twice: under `unshare`, as the first process of the new namespaces, which takes in
//! the orphans that container shims are; and by that one, as what it is meant to be.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, ensure};
use countersign_tests::scratch::Scratch;
use rustix::process::{Pid, WaitOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::{cgroups, tools};

/// Which of the three starts this is.
const STAGE: &str = "COUNTERSIGN_CLUSTER_STAGE";
/// The directory of this run.
const DIRECTORY: &str = "COUNTERSIGN_CLUSTER_DIRECTORY";

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
}

/// Moves this program into namespaces of its own. To be called first in `main`.
pub fn enter() -> Result<Entered> {
    match std::env::var(STAGE).as_deref() {
        Ok("inside") => {
            let directory = std::env::var_os(DIRECTORY).context(DIRECTORY)?.into();
            Ok(Entered::Inside(Place { directory }))
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(namespaces(scratch.path()));
    cgroups::remove(scratch.path());
    Ok(Entered::Ended(code(status?)))
}

async fn namespaces(directory: &Path) -> Result<ExitStatus> {
    // Made first: a signal in between would end us, and nothing would be removed.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut child = tokio::process::Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(STAGE, "first")
        .env(DIRECTORY, directory)
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
