//! The binaries under test, beside the one that tests them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A directory with the binaries, in place of the one this program lies in.
const DIRECTORY: &str = "COUNTERSIGN_BINARIES";

/// The binaries of one build.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `countersign-driver`.
    pub driver: PathBuf,
    /// `countersign-agent`.
    pub agent: PathBuf,
}

impl Binaries {
    /// Finds them in the target directory this program lies in, and sees that they are not older than their
    /// sources: a test of yesterday's binary proves nothing.
    pub fn find() -> Result<Self> {
        let directory = match std::env::var_os(DIRECTORY) {
            Some(directory) => PathBuf::from(directory),
            None => target_directory()?,
        };
        Ok(Self {
            driver: fresh(&directory.join("countersign-driver"))?,
            agent: fresh(&directory.join("countersign-agent"))?,
        })
    }
}

/// `target/<profile>`: tests lie in `deps` beneath it.
fn target_directory() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let directory = program.parent().context("a program lies in a directory")?;
    let deps = directory.file_name().is_some_and(|name| name == "deps");
    Ok(if deps { directory.parent().unwrap_or(directory) } else { directory }.to_owned())
}

/// The root of the sources this program was built from.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Cargo leaves a list of a binary's sources beside it, in the form of a make rule.
fn fresh(binary: &Path) -> Result<PathBuf> {
    let Ok(built) = fs::metadata(binary).and_then(|metadata| metadata.modified()) else {
        bail!(
            "{} is missing: `cargo build --workspace --bins` makes it, as `make test` does first",
            binary.display()
        );
    };
    let rule = fs::read_to_string(binary.with_extension("d")).unwrap_or_default();
    let sources = rule.split_once(": ").map_or("", |(_, sources)| sources);
    for source in sources.replace("\\ ", "\u{0}").split_whitespace() {
        let source = PathBuf::from(source.replace('\u{0}', " "));
        let changed = fs::metadata(&source).and_then(|metadata| metadata.modified());
        if changed.is_ok_and(|changed| changed > built) {
            bail!(
                "{} is older than {}: `cargo build --workspace --bins` makes it anew, as `make test` does first",
                binary.display(),
                source.display()
            );
        }
    }
    Ok(binary.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_binary_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("tool");
        assert!(fresh(&binary).unwrap_err().to_string().contains("is missing"));
        let source = directory.path().join("a source.rs");
        fs::write(&source, "").unwrap();
        fs::write(&binary, "").unwrap();
        let rule = format!("{}: {}\n", binary.display(), source.display().to_string().replace(' ', "\\ "));
        fs::write(binary.with_extension("d"), rule).unwrap();
        fresh(&binary).unwrap();
        let later = fs::metadata(&binary).unwrap().modified().unwrap() + std::time::Duration::from_secs(5);
        fs::File::options().write(true).open(&source).unwrap().set_modified(later).unwrap();
        assert!(fresh(&binary).unwrap_err().to_string().contains("is older than"));
    }
}
