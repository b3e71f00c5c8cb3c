//! The real binaries as processes: found, started with no more rights than they have in a cluster, watched, and
//! killed in every way.

mod binaries;
mod proc;

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

pub use binaries::{Binaries, workspace};
pub use proc::{Descriptor, Status, cpu_time};

/// The uid the agent and the issuer have in a cluster.
pub const AGENT_UID: u32 = 65532;

/// How this machine lets us take rights from a process that is to have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// Another uid and no capability, as in a cluster.
    OtherUid,
    /// The same uid (in a user namespace no other is mapped), and no capability.
    NoCapabilities,
    /// We have no capability that could be taken.
    NoNewPrivileges,
}

impl Confinement {
    /// The strongest that works here.
    pub fn find() -> Result<Self> {
        for confinement in [Self::OtherUid, Self::NoCapabilities, Self::NoNewPrivileges] {
            let mut command = confinement.command(Path::new("true"));
            let tried = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
            if tried.context("starting setpriv (package util-linux)")?.success() {
                return Ok(confinement);
            }
        }
        bail!("setpriv works in no way here")
    }

    /// The uid of a process started so.
    pub fn uid(self) -> u32 {
        match self {
            Self::OtherUid => AGENT_UID,
            Self::NoCapabilities | Self::NoNewPrivileges => rustix::process::geteuid().as_raw(),
        }
    }

    /// A command that starts `program` so.
    pub fn command(self, program: &Path) -> Command {
        const NO_CAPABILITIES: [&str; 3] = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"];
        let mut command = Command::new("setpriv");
        let uid = AGENT_UID.to_string();
        match self {
            Self::OtherUid => {
                command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]).args(NO_CAPABILITIES)
            }
            Self::NoCapabilities => command.args(NO_CAPABILITIES),
            Self::NoNewPrivileges => &mut command,
        };
        command.args(["--no-new-privs", "--pdeathsig", "KILL"]).arg(program);
        command
    }
}

/// A command that starts `program` with all our rights, and that does not outlive us.
pub fn privileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// A running process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command. What it says goes to the end of the file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = append(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file with everything it said.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("{signal:?} to {}", self.name))
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    pub async fn terminate(mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended(within).await
    }

    /// Waits for its end.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} has not ended within {within:?}\n{}", self.name, self.said());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGSTOP: it hangs.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT: it goes on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGHUP: it reads again what it was set up with.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// What `/proc` shows of it.
    pub fn status(&self) -> Result<Status> {
        Status::of(self.pid()).with_context(|| self.name.clone())
    }

    /// Waits until `ready` answers true, for as long as the process runs.
    pub async fn wait_until(
        &mut self,
        within: Duration,
        what: &str,
        ready: impl AsyncFn() -> bool,
    ) -> Result<()> {
        let end = Instant::now() + within;
        loop {
            if ready().await {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({}) before {what}\n{}", self.name, describe(status), self.said());
            }
            if Instant::now() > end {
                bail!("{}: not {what} within {within:?}\n{}", self.name, self.said());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The end of its log.
    pub fn said(&self) -> String {
        format!("--- {}\n{}", self.name, tail(&self.log, 40))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn append(log: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())
}

fn describe(status: ExitStatus) -> String {
    status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"))
}

/// The last lines of a file.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let skip = text.lines().count().saturating_sub(lines);
    text.lines().skip(skip).map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(directory: &Path) -> Process {
        let mut command = privileged(Path::new("sleep"));
        command.arg("1000");
        Process::start("sleep", command, &directory.join("log")).unwrap()
    }

    #[tokio::test]
    async fn a_process_can_be_stopped_and_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = sleeper(directory.path());
        process.wait_until(Duration::from_secs(5), "asleep", async || true).await.unwrap();
        process.pause().unwrap();
        while process.status().unwrap().state != 'T' {
            sleep(Duration::from_millis(1)).await;
        }
        process.resume().unwrap();
        assert!(process.is_running());
        let status = process.terminate(Duration::from_secs(5)).await.unwrap();
        assert_eq!(describe(status), "signal 15");
    }

    #[tokio::test]
    async fn a_dropped_process_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let process = sleeper(directory.path());
        let pid = process.pid();
        drop(process);
        assert!(Status::of(pid).is_err());
    }

    #[tokio::test]
    async fn what_it_said_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = privileged(Path::new("sh"));
        command.args(["-c", "echo no such thing >&2; exit 3"]);
        let mut process = Process::start("sh", command, &directory.path().join("log")).unwrap();
        let error = process.wait_until(Duration::from_secs(5), "ready", async || false).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("no such thing"), "{text}");
    }

    #[test]
    fn a_confined_process_has_no_capability() {
        let confinement = Confinement::find().unwrap();
        let output = confinement.command(Path::new("cat")).arg("/proc/self/status").output().unwrap();
        let status = Status::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
        assert_eq!((status.effective, status.no_new_privileges), (0, true));
        assert_eq!(status.uid, confinement.uid());
        if confinement != Confinement::NoNewPrivileges {
            assert_eq!(status.bounding, 0);
        }
    }
}
