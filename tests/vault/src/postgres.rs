//! PostgreSQL, as the database behind Vault's database engine.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use countersign_tests::node::{START, free_address};
use countersign_tests::processes::Process;
use countersign_tests::scratch::Scratch;

/// Who it runs as: it refuses root.
const UID: &str = "nobody";
const GID: &str = "nogroup";
/// Password of the user `vault`, who may make others.
const PASSWORD: &str = "vault-manages-this";

/// Where Vault keeps all it knows, as its documentation has it (PostgreSQL storage backend).
const VAULT_TABLES: &str = r#"
CREATE TABLE vault_kv_store (
  parent_path TEXT COLLATE "C" NOT NULL, path TEXT COLLATE "C", key TEXT COLLATE "C", value BYTEA,
  CONSTRAINT pkey PRIMARY KEY (path, key)
);
CREATE INDEX parent_path_idx ON vault_kv_store (parent_path);
CREATE TABLE vault_ha_locks (
  ha_key TEXT COLLATE "C" NOT NULL, ha_identity TEXT COLLATE "C" NOT NULL, ha_value TEXT COLLATE "C",
  valid_until TIMESTAMP WITH TIME ZONE NOT NULL, CONSTRAINT ha_key PRIMARY KEY (ha_key)
);
"#;

/// A running server with one database, `app`.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    binaries: PathBuf,
    address: SocketAddr,
    scratch: Scratch,
}

impl Postgres {
    /// Makes a cluster with a database and starts it.
    pub async fn start() -> Result<Self> {
        let binaries = binaries()?;
        let scratch = Scratch::new()?;
        fs::write(scratch.path().join("password"), PASSWORD)?;
        owned(&scratch.directory("data", 0o700)?)?;
        owned(&scratch.directory("run", 0o755)?)?;
        let mut postgres = Self { process: None, binaries, address: free_address()?, scratch };
        let initdb = postgres.command("initdb").args(postgres.initdb()).output().context("initdb")?;
        ensure!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        postgres.resume().await?;
        postgres.sql("postgres", "CREATE DATABASE app")?;
        Ok(postgres)
    }

    fn initdb(&self) -> Vec<String> {
        let path = |name: &str| self.scratch.path().join(name).display().to_string();
        [
            "--username=vault",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--no-sync",
            "--locale=C",
            "--encoding=UTF8",
            &format!("--pwfile={}", path("password")),
            &format!("--pgdata={}", path("data")),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Starts the server, again when it was stopped.
    pub async fn resume(&mut self) -> Result<()> {
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.scratch.path().join("data"))
            .args(["-h", &self.address.ip().to_string(), "-p", &self.address.port().to_string(), "-F"])
            .arg("-k")
            .arg(self.scratch.path().join("run"));
        let mut process = Process::start("postgres", command, &self.scratch.path().join("log"))?;
        let ready = async || self.sql("postgres", "SELECT 1").is_ok();
        process.wait_until(START, "serving", ready).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops the server, whoever is connected.
    pub async fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("postgres does not run")?;
        let data = self.scratch.path().join("data");
        let stopped = self.command("pg_ctl").args(["stop", "-m", "fast", "-W", "-D"]).arg(data).output()?;
        ensure!(stopped.status.success(), "pg_ctl: {}", String::from_utf8_lossy(&stopped.stderr));
        process.ended(START).await.map(drop)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", UID, "--regid", GID, "--clear-groups", "--pdeathsig", "KILL"])
            .arg(self.binaries.join(program))
            .current_dir(self.scratch.path())
            .stdin(Stdio::null());
        command
    }

    /// What a statement gives, as the superuser, unaligned and without a header.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let run = self.scratch.path().join("run").display().to_string();
        self.psql(&["-h", &run, "-U", "vault", "-d", database, "-c", statement], None)
    }

    /// The same over the network as a user with a password.
    pub fn sql_as(&self, user: &str, password: &str, statement: &str) -> Result<String> {
        let host = self.address.ip().to_string();
        self.psql(&["-h", &host, "-U", user, "-d", "app", "-c", statement], Some(password))
    }

    fn psql(&self, arguments: &[&str], password: Option<&str>) -> Result<String> {
        let output = self
            .command("psql")
            .args(["-X", "-A", "-t", "-p", &self.address.port().to_string()])
            .args(arguments)
            .env("PGPASSWORD", password.unwrap_or_default())
            .output()
            .context("psql")?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// `host:port`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The password of the user `vault`.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// A database for all that a Vault knows, and its URL.
    pub fn for_vault(&self) -> Result<String> {
        self.sql("postgres", "CREATE DATABASE storage")?;
        self.sql("storage", VAULT_TABLES)?;
        Ok(format!("postgres://vault:{PASSWORD}@{}/storage?sslmode=disable", self.address))
    }

    /// Users that Vault made and has not removed.
    pub fn dynamic_users(&self) -> Result<Vec<String>> {
        let users = self.sql("app", "SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%' ORDER BY 1")?;
        Ok(users.lines().map(str::to_owned).collect())
    }
}

fn owned(path: &Path) -> Result<()> {
    let status = Command::new("chown").arg(format!("{UID}:{GID}")).arg(path).status().context("chown")?;
    ensure!(status.success(), "giving {} to {UID}", path.display());
    Ok(())
}

/// Whether there is one to start.
pub fn is_installed() -> bool {
    binaries().is_ok()
}

/// Debian keeps each version's programs in a directory of its own.
pub fn binaries() -> Result<PathBuf> {
    let root = Path::new("/usr/lib/postgresql");
    let versions = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let newest = versions.filter(|bin| bin.join("initdb").exists()).max();
    newest.with_context(|| format!("no PostgreSQL in {}: apt-get install postgresql", root.display()))
}
