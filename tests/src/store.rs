//! A store of SOPS files, written by the agent's own writer.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::scratch::replace_file;

/// A directory of SOPS files and the age key that opens them.
#[derive(Debug, Clone)]
pub struct SopsStore {
    agent: PathBuf,
    directory: PathBuf,
    recipient: String,
}

impl SopsStore {
    /// Makes an age key at `key` and takes `directory` for the files.
    pub fn new(agent: &Path, directory: &Path, key: &Path) -> Result<Self> {
        let recipient = sops(agent, &["keygen".as_ref(), "--output".as_ref(), key.as_os_str()])?;
        let recipient = String::from_utf8(recipient)?.trim().to_owned();
        Ok(Self { agent: agent.to_owned(), directory: directory.to_owned(), recipient })
    }

    /// One whose key was made before.
    pub fn open(agent: &Path, directory: &Path, key: &Path) -> Result<Self> {
        let text = fs::read_to_string(key).with_context(|| key.display().to_string())?;
        let recipient = text.lines().find_map(|line| line.strip_prefix("# public key: "));
        let recipient = recipient.context("an age key names its public key")?.trim().to_owned();
        Ok(Self { agent: agent.to_owned(), directory: directory.to_owned(), recipient })
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of a secret.
    pub fn file(&self, path: &str) -> PathBuf {
        self.directory.join(format!("{path}.yaml"))
    }

    /// Writes a secret, in place of what was there, in one step.
    pub fn write(&self, path: &str, document: &Value) -> Result<()> {
        let file = self.file(path);
        fs::create_dir_all(file.parent().context("a file lies in a directory")?)?;
        replace_file(&file, &self.encrypt(document)?, 0o644)
    }

    /// The bytes of an encrypted file.
    pub fn encrypt(&self, document: &Value) -> Result<Vec<u8>> {
        let mut plain = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        // JSON is YAML.
        plain.write_all(document.to_string().as_bytes())?;
        let file = plain.path().as_os_str();
        sops(&self.agent, &["encrypt".as_ref(), "--age".as_ref(), self.recipient.as_ref(), file])
    }

    /// Removes a secret.
    pub fn remove(&self, path: &str) -> Result<()> {
        fs::remove_file(self.file(path)).with_context(|| path.to_owned())
    }
}

/// What `countersign-agent sops …` writes.
fn sops(agent: &Path, arguments: &[&OsStr]) -> Result<Vec<u8>> {
    let output =
        Command::new(agent).arg("sops").args(arguments).output().context("countersign-agent sops")?;
    ensure!(output.status.success(), "countersign-agent sops: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
