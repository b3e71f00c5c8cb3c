//! What there is to see of a volume.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::tokens;

/// The files as `ls` would show them: mode, owner, group, size, name; where the names in the volume lead.
pub fn listing(volume: &Path) -> Result<String> {
    let mut names: Vec<_> = fs::read_dir(volume)?.collect::<Result<Vec<_>, _>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    let mut text = String::new();
    for entry in names {
        let name = entry.file_name().to_string_lossy().into_owned();
        let link = fs::read_link(entry.path());
        if name.starts_with("..") && name != "..data" {
            continue;
        }
        let metadata = fs::metadata(entry.path())?;
        let leads = link.map(|link| format!(" -> {}", link.display())).unwrap_or_default();
        let (uid, gid, size) = (metadata.uid(), metadata.gid(), metadata.size());
        writeln!(text, "{} {uid:>5} {gid:>5} {size:>5}  {name}{leads}", mode(&metadata))?;
    }
    Ok(text)
}

/// `-r--r-----` and the like.
pub fn mode(metadata: &fs::Metadata) -> String {
    let bits = metadata.mode();
    let mut text = String::from(if metadata.is_dir() { "d" } else { "-" });
    for shift in [6, 3, 0] {
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            text.push(if bits >> shift & bit == 0 { '-' } else { letter });
        }
    }
    text
}

/// The claims of a token, one a line; never the token or its signature.
pub fn claims(token: &str) -> Result<String> {
    let Value::Object(claims) = tokens::decode(token)? else { anyhow::bail!("claims are an object") };
    Ok(claims.iter().map(|(name, value)| format!("{name:<4} {value}")).collect::<Vec<_>>().join("\n"))
}
