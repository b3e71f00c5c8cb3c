//! Which values of a file are encrypted: the file says so itself, by the names of keys.

use regex_lite::Regex;

use super::flaw::Flaw;

/// Suffix of keys that sops leaves alone when a file says nothing.
const DEFAULT_SUFFIX: &str = "_unencrypted";

/// The one rule of a file. A key at any height decides for all that is below it.
#[derive(Debug)]
pub(super) enum Selection {
    UnencryptedSuffix(String),
    EncryptedSuffix(String),
    UnencryptedRegex(Regex),
    EncryptedRegex(Regex),
}

impl Default for Selection {
    fn default() -> Self {
        Self::UnencryptedSuffix(DEFAULT_SUFFIX.into())
    }
}

impl Selection {
    /// From `find`, which gives the text of a member of the sops section unless that is absent or empty.
    pub(super) fn read<'a>(
        find: impl Fn(&'static str) -> Result<Option<&'a str>, Flaw>,
    ) -> Result<Self, Flaw> {
        for key in ["encrypted_comment_regex", "unencrypted_comment_regex"] {
            if find(key)?.is_some() {
                return Err(Flaw::Unsupported {
                    what: format!("sops.{key} is"),
                    remedy: "choose what is encrypted by keys: a suffix or a regex of keys",
                });
            }
        }
        let regex = |key, text: &str| {
            Regex::new(text)
                .map_err(|_| Flaw::metadata(key, "is no regular expression that can be understood"))
        };
        let mut rules = Vec::new();
        if let Some(suffix) = find("unencrypted_suffix")? {
            rules.push(Self::UnencryptedSuffix(suffix.into()));
        }
        if let Some(suffix) = find("encrypted_suffix")? {
            rules.push(Self::EncryptedSuffix(suffix.into()));
        }
        if let Some(text) = find("unencrypted_regex")? {
            rules.push(Self::UnencryptedRegex(regex("unencrypted_regex", text)?));
        }
        if let Some(text) = find("encrypted_regex")? {
            rules.push(Self::EncryptedRegex(regex("encrypted_regex", text)?));
        }
        if rules.len() > 1 {
            return Err(Flaw::metadata(
                "encrypted_regex",
                "and its like exclude one another, and there are several",
            ));
        }
        Ok(rules.pop().unwrap_or_default())
    }

    /// Whether this key is one that the rule speaks of.
    pub(super) fn matches(&self, key: &str) -> bool {
        match self {
            Self::UnencryptedSuffix(suffix) | Self::EncryptedSuffix(suffix) => key.ends_with(suffix.as_str()),
            Self::UnencryptedRegex(regex) | Self::EncryptedRegex(regex) => regex.is_match(key),
        }
    }

    /// Whether a value is encrypted, given whether any of the keys that lead to it matches.
    pub(super) fn encrypts(&self, matched: bool) -> bool {
        match self {
            Self::UnencryptedSuffix(_) | Self::UnencryptedRegex(_) => !matched,
            Self::EncryptedSuffix(_) | Self::EncryptedRegex(_) => matched,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &'static str)]) -> Result<Selection, Flaw> {
        Selection::read(|key| Ok(pairs.iter().find(|pair| pair.0 == key).map(|pair| pair.1)))
    }

    fn encrypts(rule: &'static str, text: &'static str, keys: &[&str]) -> bool {
        let selection = read(&[(rule, text)]).unwrap();
        selection.encrypts(keys.iter().any(|key| selection.matches(key)))
    }

    #[test]
    fn a_key_at_any_height_decides() {
        assert!(encrypts("none", "", &["a", "b"]));
        assert!(!encrypts("none", "", &["a_unencrypted", "b"]));
        assert!(!encrypts("unencrypted_suffix", "_plain", &["a", "b_plain"]));
        assert!(encrypts("unencrypted_suffix", "_plain", &["a_unencrypted"]));
        assert!(encrypts("encrypted_suffix", "_enc", &["a_enc", "b"]));
        assert!(!encrypts("encrypted_suffix", "_enc", &["a", "b"]));
        assert!(encrypts("encrypted_regex", "^(data|stringData)$", &["data", "b"]));
        assert!(!encrypts("encrypted_regex", "^(data|stringData)$", &["metadata", "b"]));
        assert!(!encrypts("unencrypted_regex", "^meta", &["metadata", "b"]));
        assert!(encrypts("unencrypted_regex", "^meta", &["data", "b"]));
    }

    #[test]
    fn what_is_refused() {
        assert!(read(&[("encrypted_regex", "(")]).is_err());
        assert!(read(&[("encrypted_regex", "a"), ("encrypted_suffix", "b")]).is_err());
        let error = read(&[("encrypted_comment_regex", "x")]).unwrap_err().to_string();
        assert!(error.contains("sops.encrypted_comment_regex is not supported"), "{error}");
    }
}
