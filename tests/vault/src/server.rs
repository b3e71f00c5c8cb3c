//! A real Vault on loopback: TLS of a small authority, raft storage, a file of audit entries.

mod cluster;
mod kind;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use countersign_tests::node::{START, eventually, free_address};
use countersign_tests::processes::{Process, privileged};
use countersign_tests::scratch::{Scratch, replace_file};

use crate::api::Api;
use crate::audit;
use crate::authority::Authority;

pub use cluster::Storage;
pub use kind::{Kind, find};

/// A server and what opens it.
#[derive(Debug)]
pub struct Vault {
    process: Option<Process>,
    kind: Kind,
    binary: PathBuf,
    environment: Vec<(String, String)>,
    storage: Storage,
    address: SocketAddr,
    authority: Arc<Authority>,
    anonymous: Api,
    unseal_key: String,
    root_token: String,
    audit_file: PathBuf,
    scratch: Scratch,
}

impl Vault {
    /// Starts one with nothing in it, opens it, and turns its audit file on.
    pub async fn start(kind: Kind, environment: &[(&str, &str)], storage: Storage) -> Result<Self> {
        let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let mut vault = Self::new(kind, find(kind)?, free_address()?, environment.collect(), storage)?;
        vault.open().await?;
        Ok(vault)
    }

    /// The same with this binary at this address, with these variables in its environment.
    pub async fn start_at(
        kind: Kind,
        binary: PathBuf,
        address: SocketAddr,
        environment: Vec<(String, String)>,
    ) -> Result<Self> {
        let mut vault = Self::new(kind, binary, address, environment, Storage::Raft)?;
        vault.open().await?;
        Ok(vault)
    }

    fn new(
        kind: Kind,
        binary: PathBuf,
        address: SocketAddr,
        environment: Vec<(String, String)>,
        storage: Storage,
    ) -> Result<Self> {
        let scratch = Scratch::new()?;
        let authority = Arc::new(Authority::new("vault test authority")?);
        let vault = Self {
            process: None,
            kind,
            binary,
            environment,
            storage,
            address,
            anonymous: Api::new(address, &authority)?,
            authority,
            unseal_key: String::new(),
            root_token: String::new(),
            audit_file: scratch.path().join("audit.json"),
            scratch,
        };
        vault.configure()?;
        Ok(vault)
    }

    /// Writes its certificate and its configuration.
    fn configure(&self) -> Result<()> {
        let (scratch, address) = (&self.scratch, self.address);
        self.authority.write(&scratch.path().join("ca.crt"))?;
        let (certificate, key) = self.authority.certificate_at(address)?.write(scratch.path(), "vault")?;
        let cluster = free_address()?;
        let mut config = json!({
            "listener": {"tcp": {
                "address": address.to_string(), "cluster_address": cluster.to_string(),
                "tls_cert_file": certificate, "tls_key_file": key,
            }},
            "api_addr": format!("https://{address}"),
            "cluster_addr": format!("https://{cluster}"),
            "disable_mlock": true,
            "log_level": "warn",
            // A lease of an hour says more when it is renewed than one of a month.
            "default_lease_ttl": "1h",
            "max_lease_ttl": "24h",
        });
        if let (Some(config), Value::Object(storage)) =
            (config.as_object_mut(), self.storage.config(scratch, address)?)
        {
            config.extend(storage);
            if self.kind == Kind::OpenBao {
                // Else an audit file has to be named here.
                config.insert("unsafe_allow_api_audit_creation".to_owned(), json!(true));
            }
        }
        replace_file(&scratch.path().join("vault.json"), config.to_string().as_bytes(), 0o600)
    }

    /// Starts the first of a cluster, and makes it one.
    async fn open(&mut self) -> Result<()> {
        self.run().await?;
        let keys = json!({"secret_shares": 1, "secret_threshold": 1});
        let keys = self.anonymous.write("sys/init", &keys).await.context("initialising")?;
        let text = |at: &str| keys.pointer(at).and_then(Value::as_str).map(str::to_owned).context("a key");
        (self.unseal_key, self.root_token) = (text("/keys_base64/0")?, text("/root_token")?);
        self.unseal().await?;
        let file = json!({"type": "file", "options": {"file_path": self.audit_file}});
        self.root().write("sys/audit/file", &file).await.context("the audit file").map(drop)
    }

    /// Starts the process and waits until it answers, sealed.
    async fn run(&mut self) -> Result<()> {
        let mut command = privileged(&self.binary);
        // What the environment says of other servers, proxies and authorities is not meant for this one.
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("server").arg("-config").arg(self.scratch.path().join("vault.json"));
        let mut process = Process::start("vault", command, &self.log())?;
        let anonymous = self.anonymous.clone();
        let answers = async || anonymous.send(Method::GET, "sys/seal-status", Bytes::new()).await.is_ok();
        process.wait_until(START, "answering", answers).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Opens it, and waits until it is the active node.
    pub async fn unseal(&mut self) -> Result<()> {
        self.unlock().await?;
        eventually(START, "Vault is active", async || self.is_active().await)
            .await
            .with_context(|| self.said())
    }

    async fn unlock(&self) -> Result<()> {
        self.anonymous.write("sys/unseal", &json!({"key": self.unseal_key})).await.map(drop)
    }

    /// The status by which it says how it is: 200 for the active one, 429 for a standby.
    async fn health(&self) -> Option<u16> {
        let answer = self.anonymous.send(Method::GET, "sys/health", Bytes::new()).await;
        answer.ok().map(|answer| answer.status)
    }

    /// Closes it: it runs and knows nothing.
    pub async fn seal(&self) -> Result<()> {
        self.root().write("sys/seal", &Value::Null).await.map(drop)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("Vault does not run")?.kill()
    }

    /// Starts it again where it was killed, and opens it.
    pub async fn resume(&mut self) -> Result<()> {
        self.run().await?;
        self.unseal().await
    }

    /// SIGSTOP: it takes connections and says nothing.
    pub fn pause(&self) -> Result<()> {
        self.process()?.pause()
    }

    /// SIGCONT.
    pub fn go_on(&self) -> Result<()> {
        self.process()?.resume()
    }

    /// The process.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("Vault does not run")
    }

    /// All of its storage.
    pub async fn snapshot(&self) -> Result<Bytes> {
        let answer = self.root().send(Method::GET, "sys/storage/raft/snapshot", Bytes::new()).await?;
        ensure!(answer.status == 200, "snapshot: {}: {}", answer.status, answer.body);
        Ok(answer.bytes)
    }

    /// Puts it back to a snapshot, and waits until it is active again.
    pub async fn restore(&mut self, snapshot: Bytes) -> Result<()> {
        let answer = self.root().send(Method::POST, "sys/storage/raft/snapshot-force", snapshot).await?;
        ensure!((200..300).contains(&answer.status), "restore: {}: {}", answer.status, answer.body);
        // It closes and opens itself; who asks too early is told that it is sealed, or nothing at all.
        let root = self.root();
        let active = async || root.read("sys/mounts").await.is_ok();
        eventually(START, "Vault has been restored", active).await.with_context(|| self.said())
    }

    /// The API with the root token.
    pub fn root(&self) -> Api {
        self.anonymous.with_token(&self.root_token)
    }

    /// The API without a token.
    pub fn anonymous(&self) -> &Api {
        &self.anonymous
    }

    /// The root token.
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// `host:port`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Who signed its certificate.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The file with its authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.scratch.path().join("ca.crt")
    }

    /// A directory in which the binary is named `vault`, whatever it is elsewhere.
    pub fn on_path(&self) -> Result<PathBuf> {
        let (directory, binary) = (self.scratch.directory("bin", 0o755)?, self.binary.canonicalize()?);
        let link = directory.join("vault");
        if !link.exists() {
            std::os::unix::fs::symlink(binary, link)?;
        }
        Ok(directory)
    }

    /// The binary.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A directory of its own, for what goes with it.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    fn log(&self) -> PathBuf {
        self.scratch.path().join("vault.log")
    }

    /// Every entry of the audit file.
    pub fn audit(&self) -> Result<Vec<audit::Entry>> {
        audit::read(&self.audit_file, 0)
    }

    /// How many bytes the audit file has by now. Nothing is to be under way.
    pub fn audited(&self) -> Result<u64> {
        Ok(fs::metadata(&self.audit_file)?.len())
    }

    /// The entries since the audit file had so many bytes.
    pub fn audit_since(&self, audited: u64) -> Result<Vec<audit::Entry>> {
        audit::read(&self.audit_file, audited)
    }

    /// All bytes of its audit file.
    pub fn audit_text(&self) -> Result<String> {
        fs::read_to_string(&self.audit_file).context("the audit file")
    }

    /// The end of its log.
    pub fn said(&self) -> String {
        format!("--- vault\n{}", countersign_tests::processes::tail(&self.log(), 15))
    }
}
