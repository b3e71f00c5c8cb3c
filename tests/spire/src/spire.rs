//! SPIRE's server and agent on the node.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use countersign_cluster::layout::{Files, NODE_ADDRESS};
use countersign_tests::http::Metrics;
use countersign_tests::processes::{AGENT_UID, Process, workspace};
use countersign_vault_tests::authority::Authority;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::entry::Entry;
use crate::page::{self, Broker};

/// The page's trust domain.
pub const TRUST_DOMAIN: &str = "example.org";
/// The SPIFFE ID that the page gives Countersign's agent.
pub const US: &str = "spiffe://example.org/countersign/agent";
/// The page's sockets.
pub const WORKLOAD_SOCKET: &str = "/run/spire/api/api.sock";
/// The page's sockets.
pub const BROKER_SOCKET: &str = "/run/spire/broker/broker.sock";
/// The page's sockets.
pub const ADMIN_SOCKET: &str = "/run/spire/admin/admin.sock";
/// The node's name in entries; whatever SPIRE agent is attested on it has it as an alias.
const NODE: &str = "spiffe://example.org/node/node-1";
/// Where the server listens.
pub(crate) const PORT: u16 = 8081;
/// Where the agent tells what it has counted.
const TELEMETRY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9988);
/// What it counts of the streams that a pod's X.509-SVIDs come by: each when it has ended.
const STREAMS: &str = "spire_agent_rpc_spiffe_broker_api_subscribe_to_x509svid";
/// How long any part may take to start, on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A SPIRE of one server and one agent. Both end when it is dropped.
#[derive(Debug)]
pub struct Spire {
    // Who asks ends before who is asked.
    agent: Mutex<Option<Process>>,
    server: Mutex<Option<Process>>,
    programs: Programs,
    home: PathBuf,
    kubelet_ca: PathBuf,
    /// Where its bundle is served.
    pub web: Web,
}

/// The bundle endpoint: HTTPS with a certificate of an ordinary authority.
#[derive(Debug)]
pub struct Web {
    /// The file with the authority.
    pub ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Web {
    const PORT: u16 = 8445;

    fn new(home: &Path) -> Result<Self> {
        let authority = Authority::new("web test authority")?;
        let ca = authority.write(&home.join("web-ca.pem"))?;
        let (certificate, key) = authority.certificate(&["127.0.0.1"])?.write(home, "web")?;
        Ok(Self { ca, certificate, key })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/", Self::PORT)
    }
}

#[derive(Debug, Clone)]
struct Programs {
    server: PathBuf,
    agent: PathBuf,
}

impl Spire {
    /// One that knows no pod; `directory` is the run's own, and `files` are the cluster's.
    pub async fn start(directory: &Path, files: &Files) -> Result<Self> {
        let home = directory.join("spire");
        for name in ["server", "agent", "server-keys", "agent-keys"] {
            fs::create_dir_all(home.join(name))?;
        }
        let web = Web::new(&home)?;
        let spire = Self {
            agent: Mutex::new(None),
            server: Mutex::new(None),
            programs: programs()?,
            home,
            kubelet_ca: files.pki("ca.crt"),
            web,
        };
        spire.start_server().await?;
        Ok(spire)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// What the agent is told of the API server: a kubeconfig and a token, to be written before it starts.
    pub fn credentials(&self) -> [PathBuf; 2] {
        [self.path("kubeconfig"), self.path("token")]
    }

    /// Starts the server, as it was.
    pub async fn start_server(&self) -> Result<()> {
        let root = self.home.display();
        let config = format!(
            r#"
server {{
  bind_address = "127.0.0.1"
  bind_port = "{PORT}"
  socket_path = "{root}/server.sock"
  trust_domain = "{TRUST_DOMAIN}"
  data_dir = "{root}/server"
  log_level = "INFO"
  default_x509_svid_ttl = "1h"
  default_jwt_svid_ttl = "5m"
  jwt_issuer = "https://spire.{TRUST_DOMAIN}"
  experimental {{ cache_reload_interval = "1s" }}
  federation {{ bundle_endpoint {{
    address = "127.0.0.1"
    port = {web_port}
    refresh_hint = "5m"
    profile "https_web" {{ serving_cert_file {{
      cert_file_path = "{certificate}"
      key_file_path = "{key}"
      file_sync_interval = "1h"
    }} }}
  }} }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{root}/server/data.sqlite3" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{root}/server-keys/keys.json" }} }}
}}
"#,
            web_port = Web::PORT,
            certificate = self.web.certificate.display(),
            key = self.web.key.display(),
        );
        fs::write(self.path("server.hcl"), config)?;
        // It outlives the case that starts it, and with it the thread that a death signal would be bound to.
        let mut command = Command::new(&self.programs.server);
        command.arg("run").arg("-config").arg(self.path("server.hcl"));
        let mut server = Process::start("spire-server", command, &self.path("server.log"))?;
        let socket = self.path("server.sock");
        server
            .wait_until(START, "healthy", async || {
                UnixStream::connect(&socket).await.is_ok() && self.server(&["healthcheck"]).is_ok()
            })
            .await?;
        *self.server.lock().await = Some(server);
        Ok(())
    }

    /// SIGKILL to the server.
    pub async fn kill_server(&self) -> Result<()> {
        self.server.lock().await.take().context("the SPIRE server does not run")?.kill()
    }

    /// `spire-server` with these arguments, which has to succeed: what it printed.
    pub fn server(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.programs.server)
            .args(arguments)
            .arg("-socketPath")
            .arg(self.path("server.sock"))
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("spire-server {}: {}", arguments.join(" "), String::from_utf8_lossy(&said).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Makes an entry for this node; its id.
    pub fn create(&self, entry: &Entry) -> Result<String> {
        let mut arguments = vec!["entry", "create", "-parentID", NODE];
        arguments.extend(entry.arguments.iter().map(String::as_str));
        let said = self.server(&arguments)?;
        field(&said, "Entry ID").with_context(|| said.clone())
    }

    /// The entry that gives this SPIFFE ID.
    pub fn entry(&self, id: &str) -> Result<String> {
        let said = self.server(&["entry", "show", "-spiffeID", id])?;
        field(&said, "Entry ID").with_context(|| said.clone())
    }

    /// The ids of all entries that give this SPIFFE ID.
    pub fn entries(&self, id: &str) -> Result<Vec<String>> {
        let said = self.server(&["entry", "show", "-spiffeID", id])?;
        Ok(said.lines().filter_map(|line| field(line, "Entry ID")).collect())
    }

    /// Has an entry say something else; its SPIFFE ID and selectors must be as they were.
    pub fn update(&self, id: &str, entry: &Entry) -> Result<()> {
        let mut arguments = vec!["entry", "update", "-entryID", id, "-parentID", NODE];
        arguments.extend(entry.arguments.iter().map(String::as_str));
        self.server(&arguments).map(drop)
    }

    /// Takes an entry away.
    pub fn delete(&self, id: &str) -> Result<()> {
        self.server(&["entry", "delete", "-entryID", id]).map(drop)
    }

    /// The trust domain's bundle, in the SPIFFE standard's form.
    pub fn bundle(&self) -> Result<String> {
        self.server(&["bundle", "show", "-format", "spiffe"])
    }

    /// The trust domain's roots, in PEM.
    pub fn roots_pem(&self) -> Result<String> {
        self.server(&["bundle", "show"])
    }

    /// The trust domain's roots, in DER.
    pub fn roots(&self) -> Result<Vec<Vec<u8>>> {
        Ok(crate::files::blocks(&self.roots_pem()?))
    }

    /// Tells the server another trust domain's bundle: its roots, in PEM.
    pub fn set_bundle(&self, domain: &str, roots: &str) -> Result<()> {
        let path = self.path("foreign.pem");
        fs::write(&path, roots)?;
        let (id, path) = (format!("spiffe://{domain}"), path.display().to_string());
        self.server(&["bundle", "set", "-id", &id, "-format", "pem", "-path", &path]).map(drop)
    }

    /// Starts an agent that has never been attested before: it gets an identity of its own, and keeps it.
    pub async fn attest(&self, broker: Broker) -> Result<()> {
        for kept in ["agent", "agent-keys"] {
            fs::remove_dir_all(self.path(kept))?;
            fs::create_dir_all(self.path(kept))?;
        }
        fs::write(self.path("bundle.pem"), self.roots_pem()?)?;
        let said = self.server(&["token", "generate", "-spiffeID", NODE])?;
        let token = field(&said, "Token").with_context(|| said.clone())?;
        self.run_agent(broker, Some(&token)).await
    }

    /// Starts the agent as it was.
    pub async fn start_agent(&self) -> Result<()> {
        self.run_agent(Broker::Ours, None).await
    }

    /// SIGKILL to the agent.
    pub async fn kill_agent(&self) -> Result<()> {
        self.agent.lock().await.take().context("the SPIRE agent does not run")?.kill()
    }

    /// The agent's process.
    pub async fn agent_pid(&self) -> Result<u32> {
        Ok(self.agent.lock().await.as_ref().context("the SPIRE agent does not run")?.pid())
    }

    /// How many pods' streams have ended since the agent was started, whatever ended them: those that are open are not among
    /// them.
    pub async fn ended_streams(&self) -> Result<f64> {
        Ok(Metrics::scrape(TELEMETRY).await?.sum(STREAMS, &[]).unwrap_or_default())
    }

    /// The agent's program, which is a client too.
    pub fn client(&self) -> &Path {
        &self.programs.agent
    }

    async fn run_agent(&self, broker: Broker, token: Option<&str>) -> Result<()> {
        fs::create_dir_all("/run/spire/api")?;
        // SPIRE gives its socket to one group, and the directory says which: the page's second way.
        for directory in ["/run/spire/broker", "/run/spire/admin"].map(Path::new) {
            fs::create_dir_all(directory)?;
            rustix::fs::chown(directory, None, Some(rustix::fs::Gid::from_raw(AGENT_UID)))?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o2750))?;
        }
        fs::write(self.path("agent.hcl"), self.agent_config(broker)?)?;
        let [kubeconfig, _] = self.credentials();
        let mut command = Command::new(&self.programs.agent);
        command.env("KUBECONFIG", kubeconfig).arg("run").arg("-config").arg(self.path("agent.hcl"));
        command.args(token.map(|token| ["-joinToken", token]).into_iter().flatten());
        let mut agent = Process::start("spire-agent", command, &self.path("agent.log"))?;
        agent
            .wait_until(START, "serving", async || {
                let serves = async |socket: &str| UnixStream::connect(socket).await.is_ok();
                serves(WORKLOAD_SOCKET).await && (broker == Broker::Missing || serves(BROKER_SOCKET).await)
            })
            .await?;
        *self.agent.lock().await = Some(agent);
        Ok(())
    }

    fn agent_config(&self, broker: Broker) -> Result<String> {
        let root = self.home.display();
        let [_, token] = self.credentials();
        let own = format!(
            r#"  data_dir = "{root}/agent"
  server_address = "127.0.0.1"
  server_port = "{PORT}"
  trust_domain = "{TRUST_DOMAIN}"
  trust_bundle_path = "{root}/bundle.pem"
  log_level = "INFO""#
        );
        let plugins = format!(
            r#"  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{root}/agent-keys" }} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}"#
        );
        // As a pod on the node's network has it; outside of one the names are ours to give.
        let k8s = format!(
            r#"    kubelet_ca_path = "{}"
    token_path = "{}"
    node_name = "{NODE_ADDRESS}""#,
            self.kubelet_ca.display(),
            token.display()
        );
        let page = page::agent(broker, &own, "    sync_interval = \"1s\"", &plugins, &k8s)?;
        let (host, port) = (TELEMETRY.ip(), TELEMETRY.port());
        Ok(format!("{page}telemetry {{ Prometheus {{ host = \"{host}\" port = {port} }} }}\n"))
    }

    /// Ends of both logs.
    pub fn said(&self) -> String {
        ["server.log", "agent.log"]
            .map(|name| format!("--- {name}\n{}\n", countersign_tests::processes::tail(&self.path(name), 40)))
            .concat()
    }
}

/// The value after `name` and a colon, in what `spire-server` prints.
fn field(said: &str, name: &str) -> Option<String> {
    let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
    line.and_then(|rest| rest.trim_start().strip_prefix(':')).map(|value| value.trim().to_owned())
}

/// Builds server and agent where they are not built yet, which needs the network.
pub fn build() -> Result<()> {
    programs().map(drop)
}

fn programs() -> Result<Programs> {
    let output = Command::new(workspace().join("tests/tools/build.sh"))
        .args(["spire-server", "spire-agent"])
        .stderr(Stdio::inherit())
        .output()
        .context("tests/tools/build.sh")?;
    ensure!(output.status.success(), "tests/tools/build.sh: {}", output.status);
    let said = String::from_utf8(output.stdout)?;
    let mut paths = said.lines().map(PathBuf::from);
    let mut next = || paths.next().context("a path of a program");
    Ok(Programs { server: next()?, agent: next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_prints_has_fields() {
        let said = "Entry ID         : 42-a\nSPIFFE ID        : spiffe://example.org/x\n";
        assert_eq!(field(said, "Entry ID").as_deref(), Some("42-a"));
        assert_eq!(field("Token: t\n", "Token").as_deref(), Some("t"));
        assert_eq!(field(said, "Revision"), None);
    }
}
