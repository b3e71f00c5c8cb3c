//! A program in Go that serves TLS with the files of a volume and reads PKCS#12, and what OpenSSL's tools make of the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_cluster::tools::{installed, tool};
use countersign_tests::processes::{Process, privileged, workspace};
use x509_parser::prelude::Pem;

use crate::files::blocks;

/// How long it may take to start, on a busy machine.
const START: Duration = Duration::from_secs(30);
/// Where it listens.
const ADDRESS: &str = "127.0.0.1:8446";

/// The program, serving. It ends when it is dropped.
#[derive(Debug)]
pub struct Program {
    process: Process,
    volume: PathBuf,
}

impl Program {
    /// Starts it with a volume that has `tls.crt`, `tls.key` and `ca.crt`.
    pub async fn start(directory: &Path, volume: &Path) -> Result<Self> {
        let mut command = privileged(&tool("reader")?);
        command.arg("serve").arg(volume).arg(ADDRESS);
        let process = Process::start("reader", command, &directory.join("reader.log"))?;
        let mut program = Self { process, volume: volume.to_owned() };
        let listens = async || tokio::net::TcpStream::connect(ADDRESS).await.is_ok();
        program.process.wait_until(START, "listening", listens).await?;
        Ok(program)
    }

    /// What it answers to OpenSSL's client, which shows the volume's certificate and believes nobody but the roots in it;
    /// and the server's certificate, in DER.
    pub fn greets(&self) -> Result<(String, Vec<u8>)> {
        let file = |name: &str| self.volume.join("..data").join(name);
        let mut command = s_client(ADDRESS)?;
        command.args(["-ign_eof", "-verify_return_error"]);
        command.arg("-CAfile").arg(file("ca.crt")).arg("-cert").arg(file("tls.crt"));
        let output = command.arg("-key").arg(file("tls.key")).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        // In the middle of what OpenSSL says itself.
        let hello = said.split("hello ").nth(1).and_then(|rest| rest.split_whitespace().next());
        let hello = hello.with_context(|| said.to_string())?;
        Ok((hello.to_owned(), certificate(&output.stdout)?))
    }

    /// Ends it, once it is sure that it has not complained.
    pub fn end(self) -> Result<()> {
        let said = fs::read_to_string(self.process.log())?;
        ensure!(!said.contains("reader:") && !said.contains("remote error"), "{said}");
        self.process.kill()
    }
}

/// What it reads in a key store and a trust store: how many certificates, and whose.
pub fn read_pkcs12(keystore: &Path, truststore: &Path) -> Result<String> {
    let output = Command::new(tool("reader")?).arg("p12").args([keystore, truststore]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// What a program in Java does with a key store and a trust store of a type: whom a client of it calls, whom its server is
/// called by, and how many roots there are.
pub fn java(keystore: &Path, truststore: &Path, kind: &str) -> Result<String> {
    let mut command = Command::new(installed("java").context("apt-get install default-jdk-headless")?);
    command.arg(workspace().join("tests/spire/java/Reader.java")).args([keystore, truststore]).arg(kind);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// What OpenSSL reads in a PKCS#12 file by a password: all of its blocks, or with `-nokeys` or `-nocerts` some of them. None
/// where it does not take the password.
pub fn openssl_pkcs12(file: &Path, password: &str, which: &str) -> Result<Option<Vec<Vec<u8>>>> {
    let mut command = Command::new(installed("openssl")?);
    command.args(["pkcs12", "-noenc", which, "-passin"]).arg(format!("pass:{password}")).arg("-in").arg(file);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("invalid password") {
        return Ok(None);
    }
    ensure!(output.status.success(), "{said}");
    Ok(Some(blocks(&String::from_utf8(output.stdout)?)))
}

/// OpenSSL's client, for ten seconds at most.
pub fn s_client(address: &str) -> Result<Command> {
    let mut command = Command::new("timeout");
    command.arg("10").arg(installed("openssl")?).args(["s_client", "-connect", address]);
    command.stdin(Stdio::null());
    Ok(command)
}

/// The server's certificate in what the client prints.
pub fn certificate(said: &[u8]) -> Result<Vec<u8>> {
    // What is said around the block is skipped.
    let pem = Pem::iter_from_buffer(said).next().context("no certificate is shown")??;
    ensure!(pem.label == "CERTIFICATE", "{}", pem.label);
    Ok(pem.contents)
}
