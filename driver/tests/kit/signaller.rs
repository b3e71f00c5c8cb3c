//! The signaller as a process of its own, and a pod whose one process is real.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use countersign_proto::agent::STATUS_SOCKET;

use super::driver::BINARY;
use super::eventually;
use super::ground::{Ground, Volume};

/// Its sockets' directory.
pub fn directory(ground: &Ground) -> PathBuf {
    ground.path().join("signals")
}

/// A signaller. It is killed when dropped.
pub struct Signaller(Child);

impl Signaller {
    /// Starts one that takes `proc` for the node's processes, and waits until it answers.
    pub async fn start(ground: &Ground, proc: &Path) -> Self {
        let directory = directory(ground);
        fs::create_dir_all(&directory).unwrap();
        let child = Command::new(BINARY)
            .args(["signaller", "--log-level=debug", "--signals"])
            .arg(&directory)
            .arg("--proc")
            .arg(proc)
            .env_clear()
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let signaller = Self(child);
        eventually("the signaller listens", || {
            std::os::unix::net::UnixStream::connect(directory.join(STATUS_SOCKET)).is_ok()
        })
        .await;
        signaller
    }
}

impl Drop for Signaller {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A shell that writes down each SIGHUP, and goes on.
pub struct Shell {
    child: Child,
    heard: PathBuf,
}

impl Shell {
    pub async fn start(heard: PathBuf) -> Self {
        let script = r#"trap 'echo hup >>"$0"' HUP; echo ready >"$0"; while :; do sleep 0.05; done"#;
        // Whoever runs the tests may ignore SIGHUP, as under nohup: a shell could not trap it then.
        let child = Command::new("env")
            .args(["--default-signal=HUP", "sh", "-c", script])
            .arg(&heard)
            .spawn()
            .unwrap();
        let shell = Self { child, heard };
        eventually("the shell runs", || shell.heard() == "ready\n").await;
        shell
    }

    pub fn heard(&self) -> String {
        fs::read_to_string(&self.heard).unwrap_or_default()
    }

    /// Puts it below `proc`, as the main process of a pod that mounts the volume.
    pub fn runs_in(&self, proc: &Path, volume: &Volume) {
        let pid = self.child.id();
        let (directory, real) = (proc.join(pid.to_string()), PathBuf::from(format!("/proc/{pid}")));
        fs::create_dir_all(&directory).unwrap();
        symlink(real.join("stat"), directory.join("stat")).unwrap();
        // Not in one of the moments in which a shell holds all signals back.
        let status = loop {
            let status = fs::read_to_string(real.join("status")).unwrap();
            if status.contains("SigBlk:\t0000000000000000\n") {
                break status;
            }
        };
        let ids = status.lines().find(|line| line.starts_with("NSpid:")).unwrap();
        fs::write(directory.join("status"), status.replace(ids, &format!("NSpid:\t{pid}\t1"))).unwrap();
        fs::write(directory.join("cgroup"), format!("0::/kubepods/pod{}/main\n", volume.pod)).unwrap();
        let mount = format!("77 70 0:50 / /secrets ro - tmpfs countersign:{} ro\n", volume.id());
        fs::write(directory.join("mountinfo"), mount).unwrap();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
