//! A page of the documentation as what is done with it: its commands are run, its YAML is used.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use countersign_tests::processes::workspace;

/// One fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The heading it stands under.
    pub under: String,
    /// What stands after the fence.
    pub language: String,
    /// What is between the fences.
    pub text: String,
}

/// A page.
#[derive(Debug, Clone)]
pub struct Page {
    file: PathBuf,
    blocks: Vec<Block>,
}

impl Page {
    /// A page of `docs/`.
    pub fn read(name: &str) -> Result<Self> {
        let file = workspace().join("docs").join(name);
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(Self { blocks: blocks(&text), file })
    }

    /// The blocks of a language under a heading.
    pub fn under(&self, heading: &str, language: &str) -> Result<Vec<&Block>> {
        let wanted = |block: &&Block| block.under == heading && block.language == language;
        let found: Vec<_> = self.blocks.iter().filter(wanted).collect();
        ensure!(!found.is_empty(), "{}: no {language} under {heading:?}", self.file.display());
        Ok(found)
    }

    /// A block of YAML under a heading that has a key, such as `stores`, wherever in it.
    pub fn yaml(&self, heading: &str, key: &str) -> Result<Value> {
        for block in self.under(heading, "yaml")? {
            let document: Value = serde_saphyr::from_str(&block.text)
                .map_err(|error| anyhow::anyhow!("{}: {heading}: {error}", self.file.display()))?;
            if let Some(found) = find(&document, key) {
                return Ok(found.clone());
            }
        }
        anyhow::bail!("{}: no {key} under {heading:?}", self.file.display())
    }
}

fn find<'a>(document: &'a Value, key: &str) -> Option<&'a Value> {
    match document {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|value| find(value, key))),
        Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut found, mut under, mut open) = (Vec::new(), String::new(), None::<Block>);
    for line in text.lines() {
        match (open.take(), line.strip_prefix("```")) {
            (Some(block), Some(_)) => found.push(block),
            (Some(mut block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
                open = Some(block);
            }
            (None, Some(language)) => {
                let (under, language) = (under.clone(), language.to_owned());
                open = Some(Block { under, language, text: String::new() });
            }
            (None, None) if line.starts_with('#') => {
                line.trim_start_matches('#').trim().clone_into(&mut under);
            }
            (None, None) => {}
        }
    }
    found
}

/// A shell in which commands of a page are run, with nothing in its environment but this and a PATH.
#[derive(Debug, Clone, Default)]
pub struct Shell {
    variables: BTreeMap<String, String>,
    first_on_path: Option<PathBuf>,
}

impl Shell {
    /// One more variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// A directory that is looked at first for commands.
    #[must_use]
    pub fn with_path(mut self, directory: &Path) -> Self {
        self.first_on_path = Some(directory.to_owned());
        self
    }

    /// Runs a text as a whole in a directory, and stops at the first command that fails. Answers what it wrote.
    pub fn run(&self, directory: &Path, text: &str) -> Result<String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = self.first_on_path.iter().cloned();
        let path = std::env::join_paths(first.chain(std::env::split_paths(&path)))?;
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", text])
            .current_dir(directory)
            .env_clear()
            .env("PATH", path)
            .env("HOME", directory)
            .envs(&self.variables)
            .stdin(Stdio::null())
            .output()
            .context("bash")?;
        ensure!(
            output.status.success(),
            "{}\n{text}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_know_their_heading() {
        let found = blocks("# A\ntext\n```sh\n# not a heading\none\n```\n## B c\n```yaml\nx: 1\n```\n");
        let block = |under: &str, language: &str, text: &str| Block {
            under: under.to_owned(),
            language: language.to_owned(),
            text: text.to_owned(),
        };
        assert_eq!(found, [block("A", "sh", "# not a heading\none\n"), block("B c", "yaml", "x: 1\n")]);
    }

    /// Nine in Vault and one of helm, as the page says, and three for certificates.
    #[test]
    fn the_page_keeps_to_its_ten_commands() {
        let page = Page::read("vault.md").unwrap();
        let commands = |heading: &str| {
            let blocks = page.under(heading, "sh").unwrap();
            let lines = blocks.iter().flat_map(|block| block.text.lines());
            lines.filter(|line| line.starts_with("vault ")).count()
        };
        let counts: Vec<_> =
            ["The login, once a cluster", "A workload", "Secrets to try it with", "A database"]
                .iter()
                .map(|heading| commands(heading))
                .collect();
        assert_eq!(counts.iter().sum::<usize>() + 1, 10, "{counts:?}");
        assert_eq!(commands("Certificates"), 3);
    }

    #[test]
    fn a_command_that_fails_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let shell = Shell::default().with("NAME", "x y");
        assert_eq!(shell.run(directory.path(), "echo \"$NAME\"").unwrap(), "x y\n");
        let error = shell.run(directory.path(), "false\necho on").unwrap_err().to_string();
        assert!(error.contains("false") && !error.contains("on\n\n"), "{error}");
        assert!(shell.run(directory.path(), "echo $UNSET").is_err());
    }
}
