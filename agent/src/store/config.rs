//! What the configuration says about a store.

use std::path::PathBuf;

use serde::Deserialize;

use super::allow::Rule;
use super::vault::config::VaultConfig;

/// One entry of `stores:`.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum StoreConfig {
    /// `type: sops`
    Sops(SopsConfig),
    /// `type: vault`
    Vault(Box<VaultConfig>),
}

/// A directory of SOPS files.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SopsConfig {
    /// The directory below which the files are. It is resolved anew at each look, so a symlink that is swapped (as
    /// git-sync does) is followed.
    pub directory: PathBuf,
    /// A file with one `AGE-SECRET-KEY-1…` a line.
    pub age_key_file: PathBuf,
    /// Who may read what. Nobody may read anything without a rule.
    #[serde(default)]
    pub allow: Vec<Rule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<StoreConfig, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_entry() {
        let Ok(StoreConfig::Sops(config)) = parse(
            "type: sops\ndirectory: /etc/secrets\nageKeyFile: /etc/age/key\nallow:\n- id: spiffe://td/ns/*/sa/*\n  paths: ['{ns}/*']\n",
        ) else {
            panic!("no sops store")
        };
        assert_eq!(config.directory.to_str(), Some("/etc/secrets"));
        assert_eq!(config.age_key_file.to_str(), Some("/etc/age/key"));
        assert_eq!(config.allow.len(), 1);
    }

    #[test]
    fn what_is_refused_is_named() {
        let unknown = parse("type: sops\ndirectory: /a\nageKeyFile: /b\nageKey: x\n").unwrap_err();
        assert!(unknown.contains("ageKey") && unknown.contains("ageKeyFile"), "{unknown}");
        let kind = parse("type: vualt\ndirectory: /a\n").unwrap_err();
        assert!(kind.contains("vualt") && kind.contains("sops"), "{kind}");
        let missing = parse("type: sops\ndirectory: /a\n").unwrap_err();
        assert!(missing.contains("ageKeyFile"), "{missing}");
        let rule = parse(
            "type: sops\ndirectory: /a\nageKeyFile: /b\nallow:\n- id: spiffe://*/ns/a\n  paths: ['a']\n",
        )
        .unwrap_err();
        assert!(rule.contains("spiffe://*/ns/a") && rule.contains("trust domain"), "{rule}");
    }
}
