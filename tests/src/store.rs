//! A store of SOPS files, written by the agent's own writer.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::scratch::replace_file;

/// A directory of SOPS files and the age key that opens them.
#[derive(Debug, Clone)]
pub struct SopsStore {
    agent: PathBuf,
    directory: PathBuf,
    key: PathBuf,
    recipient: String,
}

impl SopsStore {
    /// Makes an age key at `key` and takes `directory` for the files.
    pub fn new(agent: &Path, directory: &Path, key: &Path) -> Result<Self> {
        let output =
            Command::new(agent).args(["sops", "keygen"]).output().context("countersign-agent sops keygen")?;
        ensure!(output.status.success(), "sops keygen: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let recipient = text
            .split_whitespace()
            .find(|word| word.starts_with("age1"))
            .context("a key file names its recipient")?
            .to_owned();
        replace_file(key, text.as_bytes(), 0o600)?;
        Ok(Self { agent: agent.to_owned(), directory: directory.to_owned(), key: key.to_owned(), recipient })
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The age key's file.
    pub fn key(&self) -> &Path {
        &self.key
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
        let mut child = Command::new(&self.agent)
            .args(["sops", "encrypt", "--format", "yaml", "--age", &self.recipient])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("countersign-agent sops encrypt")?;
        // JSON is YAML.
        child.stdin.take().context("a pipe")?.write_all(document.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "sops encrypt: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    /// Removes a secret.
    pub fn remove(&self, path: &str) -> Result<()> {
        fs::remove_file(self.file(path)).with_context(|| path.to_owned())
    }
}
