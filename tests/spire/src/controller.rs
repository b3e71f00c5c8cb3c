//! spire-controller-manager, which keeps entries for the pods that a `ClusterSPIFFEID` selects.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_cluster::tools::tool;
use countersign_tests::processes::{Process, workspace};
use countersign_vault_tests::page::Page;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::spire::TRUST_DOMAIN;
use crate::world::World;

/// Its entries' ids begin so; all others are none of its business.
pub const PREFIX: &str = "scm.";
/// The class of the page.
pub const CLASS: &str = "spire-mgmt-spire";
/// Where it says that it is well.
const HEALTH: &str = "127.0.0.1:8083";
/// How long it may take to start, on a busy machine.
const START: Duration = Duration::from_secs(60);
/// The Go module that it is.
const MODULE: &str = "github.com/spiffe/spire-controller-manager";

/// The controller, at work beside SPIRE's server. It ends when it is dropped.
#[derive(Debug)]
pub struct Controller {
    process: Process,
}

impl Controller {
    /// Teaches the cluster its kinds, and starts it.
    pub async fn start(world: &World) -> Result<Self> {
        let kinds = module()?.join("config/crd/bases");
        let kinds = kinds.to_str().context("a path")?.to_owned();
        // More than an annotation holds, which is where a plain apply keeps what was applied.
        world.cluster.kubectl(&["apply", "--server-side", "-f", &kinds])?;
        world.cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "-f", &kinds])?;
        let config = world.directory.join("controller.yaml");
        std::fs::write(&config, configuration(&world.spire.path("server.sock").display().to_string()))?;
        let mut command = Command::new(tool("spire-controller-manager")?);
        command.env("KUBECONFIG", world.cluster.kubeconfig()).env("ENABLE_WEBHOOKS", "false");
        command.arg("-config").arg(&config);
        let log = world.directory.join("controller.log");
        let mut process = Process::start("spire-controller-manager", command, &log)?;
        let listens = async || TcpStream::connect(HEALTH).await.is_ok();
        process.wait_until(START, "serving its health", listens).await?;
        Ok(Self { process })
    }

    /// Ends it; what it has made stays.
    pub fn end(self) -> Result<()> {
        self.process.kill()
    }

    /// The end of what it has logged.
    pub fn said(&self) -> String {
        countersign_tests::processes::tail(self.process.log(), 40)
    }
}

/// The page's `ClusterSPIFFEID` for Countersign's agent.
pub fn ours() -> Result<String> {
    let page = Page::read("spire.md")?;
    let mut blocks = page.under("Beside the hardened SPIRE charts", "yaml")?;
    blocks.retain(|block| block.text.contains("kind: ClusterSPIFFEID"));
    let [block] = blocks.try_into().ok().context("docs/spire.md: one ClusterSPIFFEID")?;
    ensure!(block.text.contains(CLASS), "docs/spire.md: the ClusterSPIFFEID is not of class {CLASS}");
    Ok(block.text.clone())
}

/// As the hardened charts have it, but for the nodes' SPIRE agents: ours have a name by their node, by a join token.
fn configuration(server: &str) -> String {
    format!(
        r#"apiVersion: spire.spiffe.io/v1alpha1
kind: ControllerManagerConfig
metadata: {{name: controller}}
metrics: {{bindAddress: "0"}}
health: {{healthProbeBindAddress: "{HEALTH}"}}
leaderElection: {{leaderElect: false}}
clusterName: test
clusterDomain: cluster.local
trustDomain: {TRUST_DOMAIN}
className: {CLASS}
ignoreNamespaces: [kube-system, kube-public, spire]
spireServerSocketPath: {server}
parentIDTemplate: "spiffe://{{{{ .TrustDomain }}}}/node/{{{{ .NodeMeta.Name }}}}"
entryIDPrefix: {}
"#,
        PREFIX.trim_end_matches('.')
    )
}

/// Where the module lies, for the kinds that it brings.
fn module() -> Result<PathBuf> {
    let output = Command::new("go")
        .args(["mod", "download", "-json", MODULE])
        .current_dir(workspace().join("tests/tools/spire-controller-manager"))
        .output()
        .context("go")?;
    ensure!(output.status.success(), "go mod download: {}", String::from_utf8_lossy(&output.stderr));
    let known: Value = serde_json::from_slice(&output.stdout)?;
    Ok(PathBuf::from(known["Dir"].as_str().context("a directory")?))
}
