//! Looks for secrets where none should be: in files, mounts, environments and command lines, as they are and in the
//! encodings that one would find them in.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use memchr::memmem::Finder;

use crate::images::hex;

/// How much of a file is read at once.
const CHUNK: usize = 1 << 20;
/// How every token of a cluster or of ours begins: a JWT's header, `{"alg":"…`.
const TOKEN: &[u8] = b"eyJhbGciOi";

/// A text and all its encodings.
pub struct Needle {
    finders: Vec<Finder<'static>>,
    longest: usize,
}

impl Needle {
    /// Of these bytes, which should be too many and too odd to be found by chance.
    pub fn new(secret: &[u8]) -> Self {
        let mut forms =
            vec![secret.to_vec(), hex(secret).into_bytes(), hex(secret).to_uppercase().into_bytes()];
        // In base64 a text looks different by where it starts, and its ends mix with what is beside it.
        for before in 0..3 {
            let padded = [vec![0; before], secret.to_vec()].concat();
            for text in [STANDARD_NO_PAD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)] {
                let (first, last) = ((before * 8).div_ceil(6), padded.len() * 8 / 6);
                forms.push(text.as_bytes().get(first..last).unwrap_or_default().to_vec());
            }
        }
        Self::forms(forms)
    }

    /// The beginning of any token.
    pub fn any_token() -> Self {
        Self::forms(vec![TOKEN.to_vec()])
    }

    fn forms(mut forms: Vec<Vec<u8>>) -> Self {
        forms.sort();
        forms.dedup();
        let longest = forms.iter().map(Vec::len).max().unwrap_or_default();
        Self { finders: forms.iter().map(|form| Finder::new(form).into_owned()).collect(), longest }
    }

    /// Whether any form of it is in these bytes.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.finders.iter().any(|finder| finder.find(bytes).is_some())
    }

    /// Whether any form of it is in what can be read.
    pub fn is_in_reader(&self, mut reader: impl Read) -> Result<bool> {
        let mut window = Vec::with_capacity(CHUNK + self.longest);
        loop {
            let read = reader.by_ref().take(CHUNK as u64).read_to_end(&mut window)?;
            if self.is_in(&window) {
                return Ok(true);
            }
            if read == 0 {
                return Ok(false);
            }
            // It may lie across two chunks.
            let keep = window.len().saturating_sub(self.longest);
            window.drain(..keep);
        }
    }
}

/// Where something was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Found {
    /// The places, such as paths.
    pub places: Vec<String>,
    /// How many bytes were looked through.
    pub bytes: u64,
}

/// All files beneath a directory, on its own file system.
pub fn tree(directory: &Path, needle: &Needle) -> Result<Found> {
    let mut found = Found::default();
    let device = fs::symlink_metadata(directory).with_context(|| directory.display().to_string())?.dev();
    walk(directory, device, needle, &mut found);
    Ok(found)
}

fn walk(directory: &Path, device: u64, needle: &Needle, found: &mut Found) {
    // What vanishes while we look is nowhere any more.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            walk(&path, device, needle, found);
        } else if metadata.is_file() {
            let Ok(file) = File::open(&path) else { continue };
            found.bytes += metadata.len();
            if needle.is_in_reader(file).unwrap_or_default() {
                found.places.push(path.display().to_string());
            }
        } else if metadata.is_symlink()
            && fs::read_link(&path).is_ok_and(|target| needle.is_in(target.as_os_str().as_encoded_bytes()))
        {
            found.places.push(path.display().to_string());
        }
    }
}

/// Environment and command line of every process but this one.
pub fn processes(needle: &Needle) -> Result<Found> {
    let mut found = Found::default();
    for pid in pids()? {
        for file in ["environ", "cmdline"] {
            let path = format!("/proc/{pid}/{file}");
            let bytes = fs::read(&path).unwrap_or_default();
            found.bytes += bytes.len() as u64;
            if needle.is_in(&bytes) {
                found.places.push(path);
            }
        }
    }
    Ok(found)
}

/// Every file system in memory that any process sees, by the name of its source and its device, with what of it was found.
pub fn memory(needle: &Needle) -> Result<BTreeMap<String, Found>> {
    let mut places: BTreeMap<String, PathBuf> = BTreeMap::new();
    for pid in pids()? {
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for line in table.lines() {
            let Some((mount, system)) = line.split_once(" - ") else { continue };
            let fields: Vec<&str> = mount.split(' ').collect();
            let system: Vec<&str> = system.split(' ').collect();
            if let (Some(device), Some(point), Some(kind), Some(source)) =
                (fields.get(2), fields.get(4), system.first(), system.get(1))
                && matches!(*kind, "tmpfs" | "ramfs" | "hugetlbfs")
            {
                let path = PathBuf::from(format!("/proc/{pid}/root{point}"));
                places.entry(format!("{source} ({device})")).or_insert(path);
            }
        }
    }
    places.into_iter().filter_map(|(name, path)| Some(Ok((name, tree(&path, needle).ok()?)))).collect()
}

fn pids() -> Result<Vec<u32>> {
    let own = std::process::id();
    let names = fs::read_dir("/proc")?.flatten().map(|entry| entry.file_name());
    let pids = names.filter_map(|name| name.to_str()?.parse().ok());
    Ok(pids.filter(|&pid| pid != own && pid != 1).collect())
}

/// The payloads of all tokens in a text, unverified, as text.
pub fn tokens(text: &[u8]) -> Vec<String> {
    let finder = Finder::new(TOKEN);
    let mut payloads: Vec<String> = finder
        .find_iter(text)
        .filter_map(|start| {
            let rest = text.get(start..)?;
            let end = rest.iter().position(|&byte| !(byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)));
            let token = rest.get(..end.unwrap_or(rest.len()))?;
            let payload = token.split(|&byte| byte == b'.').nth(1)?;
            String::from_utf8(URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
        })
        .collect();
    payloads.sort();
    payloads.dedup();
    payloads
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    const SECRET: &[u8] = b"a-secret-that-is-long?>";

    #[test]
    fn every_form_is_found_wherever_it_starts() {
        let needle = Needle::new(SECRET);
        for before in ["", "x", "yy", "zzz", "{\"p\":\""] {
            let text = [before.as_bytes(), SECRET, b"after"].concat();
            for form in [
                text.clone(),
                hex(&text).into_bytes(),
                hex(&text).to_uppercase().into_bytes(),
                STANDARD.encode(&text).into_bytes(),
                URL_SAFE_NO_PAD.encode(&text).into_bytes(),
            ] {
                assert!(needle.is_in(&form), "{}", String::from_utf8_lossy(&form));
            }
        }
        assert!(!needle.is_in(b"a-secret-that-is-short"));
    }

    #[test]
    fn a_secret_across_two_chunks_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = vec![b'.'; CHUNK - 5];
        bytes.extend(SECRET);
        bytes.extend(vec![b'.'; 100]);
        fs::write(directory.path().join("file"), &bytes).unwrap();
        let found = tree(directory.path(), &Needle::new(SECRET)).unwrap();
        assert_eq!((found.places.len(), found.bytes), (1, bytes.len() as u64));
        assert!(tree(directory.path(), &Needle::new(b"another secret")).unwrap().places.is_empty());
    }

    #[test]
    fn tokens_are_read_out_of_a_text() {
        let token = format!("eyJhbGciOiJFUzI1NiJ9.{}.sig", URL_SAFE_NO_PAD.encode("{\"aud\":\"x\"}"));
        assert_eq!(tokens(format!("log \"{token}\", again {token}").as_bytes()), ["{\"aud\":\"x\"}"]);
        assert!(tokens(b"eyJhbGciOi").is_empty());
    }
}
