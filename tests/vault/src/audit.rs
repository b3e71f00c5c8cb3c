//! Vault's audit file: one JSON object a line, one for each request and one for each answer.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

/// One line.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    /// `request` or `response`.
    #[serde(rename = "type")]
    pub kind: String,
    /// RFC 3339.
    pub time: String,
    /// What was refused, and why.
    #[serde(default)]
    pub error: String,
    /// Who asked.
    #[serde(default)]
    pub auth: Auth,
    /// What was asked.
    pub request: Request,
}

/// Who asked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Auth {
    /// Such as `jwt-spiffe://example.org/ns/payments/sa/api`.
    pub display_name: String,
    /// The entity.
    pub entity_id: String,
    /// Names of policies.
    pub policies: Vec<String>,
}

/// What was asked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Request {
    /// What an answer calls `request_id`.
    pub id: String,
    /// `read`, `update` and so on.
    pub operation: String,
    /// Such as `kv/data/payments`.
    pub path: String,
}

impl Entry {
    /// Whether it is a request for this path or for one beneath it.
    pub fn asks_for(&self, path: &str) -> bool {
        self.kind == "request"
            && self
                .request
                .path
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether it is a read of this path, by somebody who logged in.
    pub fn reads(&self, path: &str) -> bool {
        self.kind == "request"
            && self.request.operation == "read"
            && self.request.path == path
            && self.auth.display_name != "root"
    }

    /// Whether it is a login.
    pub fn is_login(&self) -> bool {
        self.kind == "request"
            && self.request.path.starts_with("auth/")
            && self.request.path.ends_with("/login")
    }
}

/// The time of day of a line (RFC 3339, in UTC).
fn time_of_day(time: &str) -> Result<Duration> {
    let clock =
        time.split_once('T').and_then(|(_, clock)| clock.strip_suffix('Z')).context("a time in UTC")?;
    let mut parts = clock.split(':');
    let mut next = || parts.next().context("hours, minutes and seconds");
    let (hours, minutes, seconds): (u64, u64, f64) = (next()?.parse()?, next()?.parse()?, next()?.parse()?);
    Ok(Duration::from_secs(hours * 3600 + minutes * 60) + Duration::from_secs_f64(seconds))
}

/// The sum of the times between each request and its answer.
pub fn answered(entries: &[Entry]) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for answer in entries.iter().filter(|entry| entry.kind == "response") {
        let same = |entry: &&Entry| entry.kind == "request" && entry.request.id == answer.request.id;
        if let Some(request) = entries.iter().find(same) {
            // Over midnight there is nothing to be added.
            sum += time_of_day(&answer.time)?.saturating_sub(time_of_day(&request.time)?);
        }
    }
    Ok(sum)
}

/// Reads what a file holds after so many bytes, which ended a line.
pub fn read(file: &Path, from: u64) -> Result<Vec<Entry>> {
    let mut text = String::new();
    let mut opened = fs::File::open(file).with_context(|| file.display().to_string())?;
    opened.seek(SeekFrom::Start(from))?;
    opened.read_to_string(&mut text)?;
    // A line that is being written has no end yet.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).context("a line of the audit file")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_paired() {
        let entry = |kind: &str, id: &str, time: &str| Entry {
            kind: kind.to_owned(),
            time: time.to_owned(),
            error: String::new(),
            auth: Auth::default(),
            request: Request { id: id.to_owned(), ..Request::default() },
        };
        let entries = [
            entry("request", "a", "2026-01-01T10:00:59.5Z"),
            entry("request", "b", "2026-01-01T10:00:59.6Z"),
            entry("response", "a", "2026-01-01T10:01:00.25Z"),
            entry("response", "of another", "2026-01-01T10:01:00.25Z"),
        ];
        assert_eq!(answered(&entries).unwrap(), Duration::from_millis(750));
    }

    #[test]
    fn lines_are_requests_and_answers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = concat!(
            r#"{"type":"request","time":"t","request":{"id":"1","operation":"update","path":"auth/jwt/login"}}"#,
            "\n",
            r#"{"type":"request","time":"t","auth":{"display_name":"jwt-x"},"request":{"id":"2","operation":"read","path":"kv/data/a"}}"#,
            "\n",
            r#"{"type":"response","time":"t","error":"denied","request":{"id":"2","operation":"read","path":"kv/data/a"}}"#,
            "\n{\"type\":",
        );
        fs::write(file.path(), text).unwrap();
        let entries = read(file.path(), 0).unwrap();
        assert_eq!(entries.len(), 3);
        assert!(entries[0].is_login() && !entries[1].is_login());
        assert!(entries[1].asks_for("kv/data") && entries[1].asks_for("kv/data/a"));
        assert!(!entries[1].asks_for("kv/da") && !entries[2].asks_for("kv/data/a"));
    }
}
