//! The driver, as a process of its own or within the test, and kubelet's way of calling it.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream as Stream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use countersign_driver::config::{CommandLine, Config};
use countersign_driver::process::Driver;
use countersign_proto::agent::STATUS_SOCKET;
use countersign_proto::csi::node_client::NodeClient;
use countersign_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::eventually;
use super::ground::{Ground, Volume};

pub(super) const BINARY: &str = env!("CARGO_BIN_EXE_countersign-driver");

/// How a driver is started.
#[derive(Clone, Debug, Default)]
pub struct Start {
    pub options: Vec<String>,
    pub environment: Vec<(&'static str, String)>,
}

impl Start {
    pub fn attached(mut self) -> Self {
        self.options.push("--clone-attached".into());
        self
    }

    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    pub fn die_at(mut self, point: &str) -> Self {
        self.environment.push(("COUNTERSIGN_DIE_AT", point.to_owned()));
        self
    }

    pub fn stop_at(mut self, point: &str) -> Self {
        self.environment.push(("COUNTERSIGN_STOP_AT", point.to_owned()));
        self
    }

    /// With a link directory of its own, as another pod has.
    pub fn beside(self, link: &std::path::Path) -> Self {
        self.option(format!("--link-dir={}", link.display()))
    }

    fn line(&self, ground: &Ground) -> Vec<String> {
        // The agent of these tests runs as the user that runs them.
        let uid = rustix::process::geteuid().as_raw();
        let mut line =
            vec!["--node-id=n1".to_owned(), "--log-format=text".to_owned(), "--log-level=debug".to_owned()];
        for (option, value) in [
            ("--kubelet-root", ground.root().display().to_string()),
            ("--agent-uid", uid.to_string()),
            ("--link-dir", ground.link().display().to_string()),
        ] {
            if !self.options.iter().any(|given| given.starts_with(option)) {
                line.push(format!("{option}={value}"));
            }
        }
        line.extend(self.options.iter().cloned());
        line
    }

    /// Starts the driver's binary and returns at once.
    pub fn spawn(&self, ground: &Ground) -> Process {
        let log = ground.path().join("driver.log");
        let child = Command::new(BINARY)
            .args(self.line(ground))
            .env_clear()
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let given = self.options.iter().find_map(|option| option.strip_prefix("--link-dir="));
        let link = given.map_or_else(|| ground.link(), PathBuf::from);
        Process { child, socket: ground.csi_socket(), link, log }
    }

    /// Starts the driver's binary and waits until it answers.
    pub async fn run(&self, ground: &Ground) -> Process {
        let mut process = self.spawn(ground);
        eventually("the driver listens", || {
            assert!(process.child.try_wait().unwrap().is_none(), "the driver has ended");
            Stream::connect(process.link.join(STATUS_SOCKET)).is_ok()
        })
        .await;
        process
    }

    /// Runs the driver within the test, without its sandbox, where the test's clock holds.
    pub fn within(&self, ground: &Ground) -> Within {
        use clap::Parser;
        let mut line = vec!["countersign-driver".to_owned()];
        line.extend(self.line(ground));
        let config = Config::try_from(CommandLine::try_parse_from(line).unwrap()).unwrap();
        let stop = CancellationToken::new();
        let driver = Driver::prepare(config).unwrap();
        let task = TaskTracker::new().spawn(driver.serve(stop.clone()));
        Within { stop, task, socket: ground.csi_socket() }
    }
}

/// A driver that is a process of its own. It is killed when dropped.
pub struct Process {
    child: Child,
    socket: PathBuf,
    link: PathBuf,
    log: PathBuf,
}

impl Process {
    /// What it has logged, and those before it on the same ground.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub async fn publish(&self, volume: &Volume) -> Result<(), Status> {
        publish(&self.socket, volume.publish()).await
    }

    pub async fn publish_request(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        publish(&self.socket, request).await
    }

    pub async fn unpublish(&self, volume: &Volume) -> Result<(), Status> {
        unpublish(&self.socket, volume.unpublish()).await
    }

    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the status socket says.
    pub fn status(&self) -> serde_json::Value {
        let mut line = String::new();
        Stream::connect(self.link.join(STATUS_SOCKET)).unwrap().read_to_string(&mut line).unwrap();
        assert!(line.ends_with('\n'), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    pub async fn connected(&self) {
        eventually("the agent is connected", || self.status()["agent_connected"] == true).await;
    }

    pub async fn disconnected(&self) {
        eventually("the agent is not connected", || self.status()["agent_connected"] == false).await;
    }

    /// How many descriptors the process has open, connections that are just closing aside.
    pub async fn descriptors(&self) -> usize {
        let count = || std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count();
        let mut least = count();
        for _ in 0..20 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            least = least.min(count());
        }
        least
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the driver ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    pub async fn kill(mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        let log = self.log();
        if std::thread::panicking() {
            print!("{log}");
        } else {
            assert!(
                !log.contains("token-") && !log.contains("vault:kv"),
                "the log tells what was asked for:\n{log}"
            );
        }
    }
}

/// A driver within the test.
pub struct Within {
    pub stop: CancellationToken,
    pub task: JoinHandle<Result<(), countersign_driver::error::Error>>,
    pub socket: PathBuf,
}

async fn client(socket: PathBuf) -> Result<NodeClient<Channel>, Status> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    channel.map(NodeClient::new).map_err(|error| Status::unavailable(error.to_string()))
}

/// Publishes over a connection of its own, as kubelet does.
pub async fn publish(socket: &std::path::Path, request: NodePublishVolumeRequest) -> Result<(), Status> {
    client(socket.to_owned()).await?.node_publish_volume(request).await.map(drop)
}

/// Unpublishes over a connection of its own.
pub async fn unpublish(socket: &std::path::Path, request: NodeUnpublishVolumeRequest) -> Result<(), Status> {
    client(socket.to_owned()).await?.node_unpublish_volume(request).await.map(drop)
}
