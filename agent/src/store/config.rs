//! What the configuration says about a store.

use std::path::PathBuf;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

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
    /// Which SVID of a pod counts, where SPIRE gives it several; none: the volume's own.
    #[serde(default, deserialize_with = "hint")]
    pub hint: Option<Arc<str>>,
}

impl StoreConfig {
    /// Which SVID of a pod the store is shown, where SPIRE gives it several; none: the volume's own.
    #[must_use]
    pub const fn hint(&self) -> Option<&Arc<str>> {
        match self {
            Self::Sops(config) => config.hint.as_ref(),
            Self::Vault(config) => config.hint.as_ref(),
        }
    }
}

/// A hint, by the rules that hold for a volume's.
pub(super) fn hint<'de, D: Deserializer<'de>>(text: D) -> Result<Option<Arc<str>>, D::Error> {
    let text = String::deserialize(text)?;
    crate::request::hint(&text).map(Some).map_err(|problem| D::Error::custom(format!("hint: {problem}")))
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
    fn every_kind_has_a_hint() {
        for text in ["type: sops\ndirectory: /a\nageKeyFile: /b\n", "type: vault\naddresses: ['https://v']\n"]
        {
            assert_eq!(parse(text).unwrap().hint(), None);
            let hinted = parse(&format!("{text}hint: external\n")).unwrap();
            assert_eq!(hinted.hint().map(|hint| &**hint), Some("external"));
        }
    }

    #[test]
    fn what_is_refused_is_named() {
        let unknown = parse("type: sops\ndirectory: /a\nageKeyFile: /b\nageKey: x\n").unwrap_err();
        assert!(unknown.contains("ageKey") && unknown.contains("ageKeyFile"), "{unknown}");
        let kind = parse("type: vualt\ndirectory: /a\n").unwrap_err();
        assert!(kind.contains("vualt") && kind.contains("sops"), "{kind}");
        let missing = parse("type: sops\ndirectory: /a\n").unwrap_err();
        assert!(missing.contains("ageKeyFile"), "{missing}");
        let hint = parse("type: sops\ndirectory: /a\nageKeyFile: /b\nhint: ''\n").unwrap_err();
        assert!(hint.contains("hint: a hint has 1 to 1024 printable bytes"), "{hint}");
        let rule = parse(
            "type: sops\ndirectory: /a\nageKeyFile: /b\nallow:\n- id: spiffe://*/ns/a\n  paths: ['a']\n",
        )
        .unwrap_err();
        assert!(rule.contains("spiffe://*/ns/a") && rule.contains("trust domain"), "{rule}");
    }
}
