//! Which notation a file is in: told by its name, as sops does.

use std::fmt;

/// A notation that can be read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2 with what go-yaml v3 (which sops uses) reads of 1.1.
    Yaml,
    /// JSON (RFC 8259). The files of sops' binary mode, which have one member `data`, are among them.
    Json,
}

impl Format {
    /// File name endings in the order in which they are tried.
    pub(super) const ENDINGS: [(&'static str, Self); 3] =
        [(".yaml", Self::Yaml), (".yml", Self::Yaml), (".json", Self::Json)];

    /// The notation of a file of this name, and the name without its ending.
    #[must_use]
    pub fn of(name: &str) -> Option<(Self, &str)> {
        Self::ENDINGS.iter().find_map(|(ending, format)| {
            name.strip_suffix(ending)
                .filter(|stem| !stem.is_empty() && !stem.ends_with('/'))
                .map(|s| (*format, s))
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yaml => "YAML",
            Self::Json => "JSON",
        })
    }
}
