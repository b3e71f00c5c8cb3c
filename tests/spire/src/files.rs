//! What is in a pod's volume, and what of it belongs together.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_tests::reader;
use rustix::fs::inotify;
use serde_json::Value;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};
use x509_parser::prelude::*;

/// One generation of a volume's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

impl Files {
    /// Those of a mounted volume.
    pub fn read(volume: &Path) -> Result<Self> {
        Ok(Self(reader::read(volume)?))
    }

    /// A file's text; nothing where there is none.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// The DER blocks of a PEM file.
    pub fn blocks(&self, name: &str) -> Vec<Vec<u8>> {
        blocks(self.text(name))
    }

    /// The SPIFFE ID in `tls.crt`, whose key must be that of `tls.key` and whose issuer must be in `ca.crt`.
    pub fn identity(&self) -> Result<String> {
        let (chain, roots) = (self.blocks("tls.crt"), self.blocks("ca.crt"));
        let (_, leaf) = X509Certificate::from_der(chain.first().context("a leaf in tls.crt")?)?;
        let key = self.blocks("tls.key").pop().context("a key in tls.key")?;
        let point = &*leaf.public_key().subject_public_key.data;
        ensure!(key.windows(point.len()).any(|part| part == point), "the key is another's");
        let vouched = roots.iter().any(|root| {
            X509Certificate::from_der(root)
                .is_ok_and(|(_, root)| leaf.verify_signature(Some(root.public_key())).is_ok())
        });
        ensure!(vouched, "no root in ca.crt vouches for tls.crt");
        let names = leaf.subject_alternative_name()?.context("names")?;
        let uri =
            names.value.general_names.iter().find_map(|name| {
                if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None }
            });
        uri.context("a URI name")
    }

    /// When the certificate in `tls.crt` ends.
    pub fn ends(&self) -> Result<SystemTime> {
        let chain = self.blocks("tls.crt");
        let (_, leaf) = X509Certificate::from_der(chain.first().context("a leaf in tls.crt")?)?;
        let seconds = u64::try_from(leaf.validity().not_after.timestamp())?;
        Ok(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// A part of the JWT in a file: 0 its header, 1 its claims.
    pub fn jwt(&self, name: &str, part: usize) -> Result<Value> {
        let text = self.text(name);
        let part = text.trim().split('.').nth(part).with_context(|| format!("a JWT in {name}"))?;
        Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
    }
}

/// Follows a volume as a program does that reloads its files: by inotify on the directory, where `..data` is renamed.
#[derive(Debug)]
pub struct Follower {
    volume: PathBuf,
    events: AsyncFd<rustix::fd::OwnedFd>,
    /// How often `..data` was swapped.
    pub swaps: u32,
}

impl Follower {
    /// From now on.
    #[expect(
        deprecated,
        reason = "the descriptor is ours, and closed with this; the way that is not deprecated is unsafe"
    )]
    pub fn new(volume: &Path) -> Result<Self> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, volume, inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::ONLYDIR)?;
        Ok(Self { volume: volume.to_owned(), events: AsyncFd::new(events)?, swaps: 0 })
    }

    /// Waits until what is in the volume is so; each look but the first is an event's consequence.
    pub async fn becomes(
        &mut self,
        within: Duration,
        what: &str,
        done: impl Fn(&Files) -> bool,
    ) -> Result<Files> {
        let end = Instant::now() + within;
        loop {
            let files = Files::read(&self.volume)?;
            if done(&files) {
                // What was seen may not have been heard of yet.
                self.swaps += self.heard()?;
                return Ok(files);
            }
            timeout_at(end, self.swapped())
                .await
                .with_context(|| format!("{}: not {what} within {within:?}", self.volume.display()))??;
        }
    }

    /// Waits for the next swap of `..data`.
    async fn swapped(&mut self) -> Result<()> {
        loop {
            let mut ready = self.events.readable().await?;
            ready.clear_ready();
            let swaps = self.heard()?;
            self.swaps += swaps;
            if swaps > 0 {
                return Ok(());
            }
        }
    }

    /// The swaps that have been reported and not read yet.
    fn heard(&self) -> Result<u32> {
        let mut space = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(self.events.get_ref().as_fd(), &mut space);
        let mut swaps = 0;
        loop {
            match events.next() {
                Ok(event) => {
                    let name = event.file_name().map(std::ffi::CStr::to_bytes);
                    swaps += u32::from(name == Some(b"..data".as_slice()));
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(swaps),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The DER blocks of a PEM text.
pub fn blocks(text: &str) -> Vec<Vec<u8>> {
    Pem::iter_from_buffer(text.as_bytes()).filter_map(Result::ok).map(|pem| pem.contents).collect()
}

/// A certificate in PEM.
pub fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
