//! Whose server it is, and where its binary is found.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// Whose server it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// `HashiCorp`'s, or whatever else is found where it is looked for.
    #[default]
    Vault,
    /// `OpenBao` alone.
    OpenBao,
}

impl Kind {
    /// The variable that names the binary where it is not on PATH.
    fn variable(self) -> &'static str {
        match self {
            Self::Vault => "VAULT_BIN",
            Self::OpenBao => "BAO_BIN",
        }
    }

    /// Its names on PATH.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Vault => &["vault", "bao"],
            Self::OpenBao => &["bao"],
        }
    }

    /// What builds one.
    fn tool(self) -> &'static str {
        match self {
            Self::Vault => "vault",
            Self::OpenBao => "openbao",
        }
    }
}

/// The binary that the environment names, or the one on PATH.
pub fn find(kind: Kind) -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os(kind.variable()) {
        return Ok(binary.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in kind.names() {
        if let Some(found) =
            std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
        {
            return Ok(found);
        }
    }
    bail!(
        "no {} on PATH, and {} names none: `tests/tools/build.sh {}` builds one",
        kind.names().join(" and no "),
        kind.variable(),
        kind.tool()
    )
}
