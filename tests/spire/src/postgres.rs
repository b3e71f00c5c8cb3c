//! Debian's PostgreSQL, serving TLS with the files of a volume, and asking its clients for a certificate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use countersign_tests::node::START;
use countersign_tests::processes::{AGENT_UID, Process};
use countersign_tests::scratch::Scratch;
use countersign_vault_tests::postgres::binaries;

use crate::program::{certificate, s_client};

const HOST: &str = "127.0.0.1";
const PORT: &str = "8447";

/// A server as the agent's user: PostgreSQL takes a key of its own user or of root only.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    binaries: PathBuf,
    /// The volume, where that user can get at it: kubelet's directories are root's.
    volume: Bound,
    scratch: Scratch,
}

/// A directory in two places.
#[derive(Debug)]
struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

impl Postgres {
    /// Starts one with a volume that has `tls.crt`, `tls.key` and `ca.crt`.
    pub async fn start(volume: &Path) -> Result<Self> {
        let (scratch, binaries) = (Scratch::new()?, binaries()?);
        let data = scratch.directory("data", 0o700)?;
        let tls = scratch.directory("tls", 0o755)?;
        let bound = Command::new("mount").arg("--bind").args([volume, &tls]).status()?;
        ensure!(bound.success(), "mount --bind {}", volume.display());
        let volume = Bound(tls);
        // It asks for its user's name, which the agent's uid does not have here.
        chown("nobody:nogroup", &data)?;
        let mut initdb = as_user("nobody", "nogroup", &binaries.join("initdb"));
        initdb.args(["--username=app", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8", "-D"]);
        let made = initdb.arg(&data).output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let hba = "hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n";
        fs::write(data.join("pg_hba.conf"), hba)?;
        let uid = AGENT_UID.to_string();
        chown(&format!("{uid}:{uid}"), &data)?;
        let mut command = as_user(&uid, &uid, &binaries.join("postgres"));
        command.arg("-D").arg(&data).args(["-h", HOST, "-p", PORT, "-F", "-c", "unix_socket_directories="]);
        for (setting, file) in
            [("ssl_cert_file", "tls.crt"), ("ssl_key_file", "tls.key"), ("ssl_ca_file", "ca.crt")]
        {
            command.arg("-c").arg(format!("{setting}={}", volume.0.join(file).display()));
        }
        command.args(["-c", "ssl=on"]);
        let process = Process::start("postgres", command, &scratch.path().join("log"))?;
        let mut postgres = Self { process, binaries, volume, scratch };
        let asked = postgres.command();
        let ready = async || answer(asked("SELECT 1")).is_ok();
        postgres.process.wait_until(START, "serving", ready).await?;
        Ok(postgres)
    }

    /// What a client is answered that has the same files, and believes nobody but the roots in them.
    pub fn sql(&self, statement: &str) -> Result<String> {
        answer(self.command()(statement))
    }

    fn command(&self) -> impl Fn(&str) -> Command + use<> {
        let file = |name: &str| self.volume.0.join(name).display().to_string();
        let connection = format!(
            "host={HOST} port={PORT} user=app dbname=postgres sslmode=verify-ca sslrootcert={} sslcert={} sslkey={}",
            file("ca.crt"),
            file("tls.crt"),
            file("tls.key")
        );
        let (psql, home) = (self.binaries.join("psql"), self.scratch.path().to_owned());
        let uid = AGENT_UID.to_string();
        move |statement| {
            let mut command = as_user(&uid, &uid, &psql);
            command.args(["-X", "-A", "-t", "-d", &connection, "-c", statement]);
            command.env("HOME", &home);
            command
        }
    }

    /// The certificate that a client is shown, in DER.
    pub fn serves(&self) -> Result<Vec<u8>> {
        let output = s_client(&format!("{HOST}:{PORT}"))?.args(["-starttls", "postgres"]).output()?;
        certificate(&output.stdout)
    }

    /// What it said.
    pub fn said(&self) -> Result<String> {
        fs::read_to_string(self.process.log()).context("its log")
    }
}

fn answer(mut command: Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn as_user(uid: &str, gid: &str, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", uid, "--regid", gid, "--clear-groups", "--pdeathsig", "KILL"]).arg(program);
    command.current_dir("/").stdin(Stdio::null());
    command
}

fn chown(owner: &str, path: &Path) -> Result<()> {
    let status = Command::new("chown").args(["-R", owner]).arg(path).status()?;
    ensure!(status.success(), "giving {} to {owner}", path.display());
    Ok(())
}
