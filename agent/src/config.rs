//! How the agent is set up: flags for the process, one YAML file for the stores.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::identity::choice::SourceArgs;
use crate::kubernetes::ApiArgs;
use crate::kubernetes::duties::ClusterArgs;
use crate::log::LogArgs;
use crate::spiffe::TrustDomain;
use crate::store::config::StoreConfig;

/// The agent's flags. Each can be given as an environment variable instead.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Directory shared with the driver: the agent's sockets lie here
    #[arg(long, env = "COUNTERSIGN_LINK_DIR")]
    pub link_dir: PathBuf,
    /// YAML file that names the stores
    #[arg(long, env = "COUNTERSIGN_CONFIG")]
    pub config: PathBuf,
    /// Trust domain of every SPIFFE ID handed out here, such as example.org
    #[arg(long, env = "COUNTERSIGN_TRUST_DOMAIN")]
    pub trust_domain: TrustDomain,
    /// Where identities come from
    #[command(flatten)]
    pub identity: SourceArgs,
    /// The API server; nothing is asked of it unless another flag needs it
    #[command(flatten)]
    pub api: ApiArgs,
    /// What the agent does in its cluster beside filling volumes
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Uid the driver runs as: no other peer is served
    #[arg(long, env = "COUNTERSIGN_DRIVER_UID", default_value_t = 0)]
    pub driver_uid: u32,
    /// Address of /healthz, /readyz and /metrics
    #[arg(long, env = "COUNTERSIGN_HTTP_LISTEN", default_value = "127.0.0.1:9410")]
    pub http_listen: SocketAddr,
    /// Log who read what: one JSON line on standard error for each read of a secret
    #[arg(long, env = "COUNTERSIGN_AUDIT")]
    pub audit: bool,
    /// How to log
    #[command(flatten)]
    pub log: LogArgs,
}

/// The configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConfigFile {
    /// Stores by the name that references give them.
    #[serde(default)]
    pub stores: BTreeMap<String, StoreConfig>,
}

/// Why the configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
}

impl ConfigFile {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        let malformed = |problem: String| ConfigError::Malformed { path: path.to_owned(), problem };
        let file: Self = serde_saphyr::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        // The grammar of references: `<store>:<path>`.
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        match file.stores.keys().find(|name| name.is_empty() || !name.bytes().all(legal)) {
            Some(name) => Err(malformed(format!("stores.{name}: a store's name is made of a-z, 0-9 and -"))),
            None => Ok(file),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ConfigFile, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().display().to_string();
        ConfigFile::read(file.path()).map_err(|error| error.to_string().replace(&path, "FILE"))
    }

    #[test]
    fn a_file_with_a_store() {
        let text = "stores:\n  git:\n    type: sops\n    directory: /d\n    ageKeyFile: /k\n    allow: []\n";
        assert_eq!(read(text).unwrap().stores.keys().collect::<Vec<_>>(), ["git"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, fragment) in [
            ("store: {}\n", "store"),
            (
                "stores:\n  Git:\n    type: sops\n    directory: /d\n    ageKeyFile: /k\n    allow: []\n",
                "stores.Git: ",
            ),
            ("stores:\n  a:\n    type: vualt\n", "vualt"),
            ("stores: [\n", "line"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("FILE: ") && error.contains(fragment), "{error}");
        }
        assert!(
            ConfigFile::read(Path::new("/nonexistent/c.yaml"))
                .unwrap_err()
                .to_string()
                .contains("No such file")
        );
    }
}
