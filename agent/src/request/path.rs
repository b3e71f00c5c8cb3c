//! Where a file lies in the volume.

use super::{FilePath, Problem};
use crate::spiffe::TrustDomain;

/// The longest name of one component, in bytes (`NAME_MAX`).
const MAX_COMPONENT_BYTES: usize = 255;
/// The most components: a pod needs few, and a walk over them has to end before descriptors do.
const MAX_COMPONENTS: usize = 16;
/// The longest path, in bytes (`PATH_MAX` less its NUL).
const MAX_PATH_BYTES: usize = 4095;

impl FilePath {
    /// Reads a path relative to the volume's root.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() {
            return Err(Problem::new("the file name is empty; put it after the slash"));
        }
        if text.len() > MAX_PATH_BYTES {
            let problem =
                format!("the file name has {} bytes; at most {MAX_PATH_BYTES} are possible", text.len());
            return Err(Problem::new(problem));
        }
        if text.starts_with('/') {
            return Err(Problem::new("the file name is absolute; write it relative to the volume"));
        }
        if text.chars().any(char::is_control) {
            return Err(Problem::new("the file name holds a control character; leave it out"));
        }
        let parts = text.split('/').count();
        if parts > MAX_COMPONENTS {
            return Err(Problem::new(format!(
                "the file name has {parts} parts; at most {MAX_COMPONENTS} are possible"
            )));
        }
        text.split('/').try_for_each(component)?;
        Ok(Self(text.to_owned()))
    }

    /// The paths of the directories that this one lies in, the nearest first.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = &str> {
        self.0.rmatch_indices('/').filter_map(|(slash, _)| self.0.get(..slash))
    }

    /// The path with the name of a trust domain before its own; none if that is no file's name.
    pub(crate) fn of_domain(&self, domain: &TrustDomain) -> Option<Self> {
        let name = self.components().next_back()?;
        let folder = self.0.strip_suffix(name)?;
        Self::parse(&format!("{folder}{domain}{name}")).ok()
    }
}

fn component(name: &str) -> Result<(), Problem> {
    match name {
        "" => Err(Problem::new(
            "the file name has an empty part; write one slash between parts, none at the end",
        )),
        "." | ".." => {
            Err(Problem::new("the file name has a part . or ..; write where the file lies without them"))
        }
        name if name.starts_with("..") => Err(Problem::new(
            "a part of the file name begins with .., which the volume keeps for itself; rename it",
        )),
        name if name.len() > MAX_COMPONENT_BYTES => Err(Problem::new(format!(
            "a part of the file name has {} bytes; at most {MAX_COMPONENT_BYTES} are possible",
            name.len()
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for text in ["a", ".a", "a/b/c", "a b", "größe", "a..b", ".hidden/x", "a.."] {
            assert_eq!(FilePath::parse(text).unwrap().as_str(), text);
        }
        let parts: Vec<String> =
            FilePath::parse("a/b/c").unwrap().components().map(ToOwned::to_owned).collect();
        assert_eq!(parts, ["a", "b", "c"]);
        assert_eq!(FilePath::parse("a/b/c").unwrap().ancestors().collect::<Vec<_>>(), ["a/b", "a"]);
        assert!(FilePath::parse(&"n".repeat(255)).is_ok());
        let longest = ["n".repeat(255).as_str(); 16].join("/");
        assert_eq!(longest.len(), 4095);
        assert!(FilePath::parse(&longest).is_ok());
    }

    #[test]
    fn what_is_no_path() {
        let empty_part = "the file name has an empty part; write one slash between parts, none at the end";
        let dots = "the file name has a part . or ..; write where the file lies without them";
        let reserved = "a part of the file name begins with .., which the volume keeps for itself; rename it";
        for (text, problem) in [
            ("", "the file name is empty; put it after the slash"),
            ("/etc/passwd", "the file name is absolute; write it relative to the volume"),
            ("a//b", empty_part),
            ("a/", empty_part),
            (".", dots),
            ("..", dots),
            ("a/../b", dots),
            ("./a", dots),
            ("..data", reserved),
            ("a/..b", reserved),
            ("a/...", reserved),
            ("a\0b", "the file name holds a control character; leave it out"),
            ("a\nb", "the file name holds a control character; leave it out"),
        ] {
            assert_eq!(FilePath::parse(text).unwrap_err().to_string(), problem, "{text:?}");
        }
        assert_eq!(
            FilePath::parse(&"n".repeat(256)).unwrap_err().to_string(),
            "a part of the file name has 256 bytes; at most 255 are possible"
        );
        assert_eq!(
            FilePath::parse(&"n/".repeat(2048)).unwrap_err().to_string(),
            "the file name has 4096 bytes; at most 4095 are possible"
        );
        assert_eq!(
            FilePath::parse(&["n"; 17].join("/")).unwrap_err().to_string(),
            "the file name has 17 parts; at most 16 are possible"
        );
    }
}
