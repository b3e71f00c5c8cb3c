//! A node: issuer, agent and driver as real processes, a kubelet and a store, all beneath one directory.

mod layout;
mod seen;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::http;
use crate::kubelet::{Backoff, Kubelet, PodVolume};
use crate::pods::{Pod, Volume};
use crate::processes::{Binaries, Confinement, Process, privileged};
use crate::store::SopsStore;
use crate::tokens::{AGENT_SERVICE_ACCOUNT, AUDIENCE, Cluster, TOKEN_ISSUER};

pub use layout::{Allow, Layout};
pub use seen::{eventually, on_node};

/// Name of the node in every run.
pub const NODE: &str = "node-1";
/// The trust domain in every run.
pub const TRUST_DOMAIN: &str = "example.org";
/// The driver's name.
pub const DRIVER: &str = "csi.countersign.dev";
/// How long a process may take to start, on a busy machine.
pub const START: Duration = Duration::from_secs(30);
/// How long anything that is to happen soon may take, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// How a node is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Who may read what in the store `sops`.
    pub allow: Vec<Allow>,
    /// More stores of the agent's configuration, by their name.
    pub stores: serde_json::Map<String, serde_json::Value>,
    /// More arguments of the driver.
    pub driver_arguments: Vec<String>,
    /// More arguments of the agent.
    pub agent_arguments: Vec<String>,
    /// Another program in the agent's place: one that counts, say.
    pub agent_binary: Option<PathBuf>,
    /// Another program in the issuer's place.
    pub issuer_binary: Option<PathBuf>,
    /// Most descriptors of the agent.
    pub agent_descriptors: Option<u32>,
    /// Life of X.509-SVIDs.
    pub x509_ttl: &'static str,
    /// What all processes log.
    pub log_level: &'static str,
    /// Most bytes of a volume.
    pub capacity: &'static str,
    /// Kubelet's patience.
    pub backoff: Backoff,
}

impl Default for Setup {
    /// Every service account may read its namespace's secrets.
    fn default() -> Self {
        Self {
            allow: vec![Allow::new("spiffe://example.org/ns/payments/sa/*", &["payments/*"])],
            stores: serde_json::Map::new(),
            driver_arguments: Vec::new(),
            agent_arguments: Vec::new(),
            agent_binary: None,
            issuer_binary: None,
            agent_descriptors: None,
            x509_ttl: "1h",
            log_level: "info",
            capacity: "4MiB",
            backoff: Backoff { first: Duration::from_millis(50), most: Duration::from_secs(1) },
        }
    }
}

/// A node and its processes. All end when it is dropped.
#[derive(Debug)]
pub struct Node {
    // Processes come first, for they are dropped first.
    /// The driver, while it runs.
    pub driver: Option<Process>,
    /// The agent, while it runs.
    pub agent: Option<Process>,
    /// The issuer, while it runs.
    pub issuer: Option<Process>,
    /// The store named `sops`.
    pub store: SopsStore,
    /// Kubelet.
    pub kubelet: Arc<Kubelet>,
    /// Where everything lies.
    pub layout: Layout,
    /// Where the agent serves `/metrics`.
    pub agent_http: SocketAddr,
    /// Where the issuer serves its documents in the clear.
    pub issuer_http: SocketAddr,
    issuer_address: SocketAddr,
    binaries: Binaries,
    confinement: Confinement,
    setup: Setup,
    background: JoinSet<()>,
}

impl Node {
    /// A node whose processes don't run yet.
    pub fn new(setup: Setup) -> Result<Self> {
        let binaries = Binaries::find()?;
        let confinement = Confinement::find()?;
        let layout = Layout::new(confinement.uid())?;
        let cluster = Arc::new(Cluster::new()?);
        layout.write_identity_files(&cluster.jwks(), &cluster.agent_token(NODE)?)?;
        let store = SopsStore::new(&binaries.agent, &layout.store, &layout.age_key)?;
        layout.write_config(&setup.allow, &setup.stores)?;
        let kubelet = Kubelet::new(&layout.kubelet_root, NODE, cluster)?.with_backoff(setup.backoff);
        Ok(Self {
            driver: None,
            agent: None,
            issuer: None,
            store,
            kubelet: Arc::new(kubelet),
            layout,
            agent_http: free_address()?,
            issuer_http: free_address()?,
            issuer_address: free_address()?,
            binaries,
            confinement,
            setup,
            background: JoinSet::new(),
        })
    }

    /// A node with all three processes running and the driver registered.
    pub async fn start(setup: Setup) -> Result<Self> {
        let mut node = Self::new(setup)?;
        node.start_issuer().await?;
        node.start_agent().await?;
        node.start_driver().await?;
        Ok(node)
    }

    /// How the agent and the issuer are kept from having rights.
    pub fn confinement(&self) -> Confinement {
        self.confinement
    }

    /// Starts the issuer and waits until it serves.
    pub async fn start_issuer(&mut self) -> Result<()> {
        let program = self.setup.issuer_binary.as_ref().unwrap_or(&self.binaries.agent);
        let mut command = self.confinement.command(program);
        let (namespace, account) = AGENT_SERVICE_ACCOUNT;
        command
            .args(["issuer", "--trust-domain", TRUST_DOMAIN, "--reviewer", "jwks"])
            .args(["--token-issuer", TOKEN_ISSUER, "--audience", AUDIENCE])
            .args(["--agent-service-account", &format!("{namespace}/{account}")])
            .args(["--x509-ttl", self.setup.x509_ttl, "--jwt-ttl", "5m"])
            .args(["--oidc-issuer", "https://issuer.example.org"])
            .args([
                "--listen",
                &self.issuer_address.to_string(),
                "--http-listen",
                &self.issuer_http.to_string(),
            ])
            .arg("--jwks")
            .arg(&self.layout.jwks)
            .arg("--bundle-out")
            .arg(&self.layout.bundle);
        self.logging(&mut command);
        let mut issuer = Process::start("issuer", command, &self.layout.log("issuer"))?;
        let (http, bundle) = (self.issuer_http, self.layout.bundle.clone());
        let ready = async || bundle.exists() && answers(http, "/healthz").await;
        issuer.wait_until(START, "serving", ready).await?;
        self.issuer = Some(issuer);
        Ok(())
    }

    /// The command that starts the agent.
    fn agent_command(&self) -> Command {
        let program = self.setup.agent_binary.as_ref().unwrap_or(&self.binaries.agent);
        let mut command = match self.setup.agent_descriptors {
            // The limit is passed on through setpriv.
            Some(most) => {
                let mut command = Command::new("prlimit");
                let confined = self.confinement.command(program);
                command
                    .arg(format!("--nofile={most}:{most}"))
                    .arg(confined.get_program())
                    .args(confined.get_args());
                command
            }
            None => self.confinement.command(program),
        };
        command
            .args(["run", "--trust-domain", TRUST_DOMAIN, "--audience", AUDIENCE])
            .args(["--issuer-address", &self.issuer_address.to_string()])
            .args(["--driver-uid", &rustix::process::geteuid().as_raw().to_string()])
            .args(["--http-listen", &self.agent_http.to_string()])
            .arg("--link-dir")
            .arg(&self.layout.link)
            .arg("--config")
            .arg(&self.layout.config)
            .arg("--issuer-bundle")
            .arg(&self.layout.bundle)
            .arg("--agent-token")
            .arg(&self.layout.agent_token)
            .args(&self.setup.agent_arguments);
        self.logging(&mut command);
        command
    }

    /// Starts the agent and waits until it serves.
    pub async fn start_agent(&mut self) -> Result<()> {
        self.start_agent_with(&[]).await
    }

    /// The same with variables in its environment.
    pub async fn start_agent_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let mut command = self.agent_command();
        command.envs(environment.iter().copied());
        let mut agent = Process::start("agent", command, &self.layout.log("agent"))?;
        let http = self.agent_http;
        agent.wait_until(START, "serving", async || answers(http, "/healthz").await).await?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Starts the driver and waits until kubelet has registered it.
    pub async fn start_driver(&mut self) -> Result<()> {
        self.start_driver_with(&[]).await
    }

    /// The same with variables in its environment, such as those that make it die at a point.
    pub async fn start_driver_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let mut command = privileged(&self.binaries.driver);
        command
            .args(["--node-id", NODE, "--driver-name", DRIVER])
            .args(["--agent-uid", &self.confinement.uid().to_string()])
            .args(["--volume-capacity", self.setup.capacity])
            .arg("--kubelet-root")
            .arg(&self.layout.kubelet_root)
            .arg("--csi-socket")
            .arg(self.layout.csi_socket()?)
            .arg("--registration-dir")
            .arg(self.kubelet.registry())
            .arg("--link-dir")
            .arg(&self.layout.link)
            .args(&self.setup.driver_arguments)
            .envs(environment.iter().copied());
        // The driver has one level less: its calls carry tokens.
        Self::logging_at(
            &mut command,
            if self.setup.log_level == "trace" { "debug" } else { self.setup.log_level },
        );
        if self.background.is_empty() {
            let kubelet = Arc::clone(&self.kubelet);
            self.background.spawn(async move { kubelet.watch_plugins().await });
        }
        let before = self.kubelet.plugin();
        let mut driver = Process::start("driver", command, &self.layout.log("driver"))?;
        let kubelet = Arc::clone(&self.kubelet);
        // A driver that was killed left its socket, and with it its registration: wait for the next one.
        let registered = async || kubelet.plugin().is_some_and(|plugin| Some(&plugin) != before.as_ref());
        driver.wait_until(START, "registered", registered).await?;
        self.driver = Some(driver);
        Ok(())
    }

    fn logging(&self, command: &mut Command) {
        Self::logging_at(command, self.setup.log_level);
    }

    fn logging_at(command: &mut Command, level: &str) {
        command.args(["--log-format", "text", "--log-level", level]);
        command.env("RUST_BACKTRACE", "0").env_remove("RUST_LOG");
    }

    /// SIGKILL to the driver.
    pub fn kill_driver(&mut self) -> Result<()> {
        self.driver.take().context("the driver does not run")?.kill()
    }

    /// SIGKILL to the agent.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("the agent does not run")?.kill()
    }

    /// A pod's volume, not published yet.
    pub fn volume(&self, pod: &Pod, volume: Volume) -> PodVolume {
        self.kubelet.volume(pod, volume)
    }

    /// A pod's volume, published.
    pub async fn published(&self, pod: &Pod, volume: Volume) -> Result<PodVolume> {
        let mut volume = self.volume(pod, volume);
        volume.publish(SOON).await?;
        Ok(volume)
    }
}

async fn answers(address: SocketAddr, path: &str) -> bool {
    http::get(address, path).await.is_ok_and(|(status, _)| status == 200)
}

/// An address that nobody listens on, and nobody else will: each call has a loopback host of its own (all of
/// 127.0.0.0/8 is this machine), so that no test running beside and no client's port can come in between.
pub fn free_address() -> Result<SocketAddr> {
    static HANDED_OUT: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 64 | (high & 0x3f), low, HANDED_OUT.fetch_add(1, Ordering::Relaxed));
    Ok(std::net::TcpListener::bind((host, 0))?.local_addr()?)
}
