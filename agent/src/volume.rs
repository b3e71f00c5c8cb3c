//! One volume: what it is to hold, as whom, and what is known of it between two turns.

mod inputs;

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::Error;
use crate::cache::Entry;
use crate::files::Directory;
use crate::identity::{Identity, JwtSvid, Push, Subscription, Token, Workload};
use crate::request::{OnRevoked, Reference, Request, Source};
use crate::sources::Stale;
pub(crate) use inputs::{Inputs, Lacking};

/// Kubelet's id of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(Arc<str>);

impl From<&str> for VolumeId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl VolumeId {
    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What one Publish call brings, parsed.
#[derive(Debug)]
pub struct Publish {
    /// Which volume.
    pub id: VolumeId,
    /// Whose.
    pub workload: Workload,
    /// What it is to hold.
    pub request: Request,
    /// Kubelet's tokens for the pod.
    pub tokens: Vec<Token>,
    /// Most bytes its files may have together.
    pub capacity: u64,
    /// The pod's fsGroup.
    pub fs_group: Option<u32>,
    /// The root of its tmpfs, writable, when one came.
    pub directory: Option<OwnedFd>,
    /// The directory must be closed before the call is answered.
    pub provisional: bool,
    /// Why the pod will not be told of changes though it asks for that: a pod without files is refused for it.
    pub unheard: Option<&'static str>,
}

/// A volume the keeper keeps.
#[derive(Debug)]
pub struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) workload: Workload,
    pub(crate) request: Request,
    pub(crate) capacity: u64,
    pub(crate) fs_group: Option<u32>,
    pub(crate) tokens: Vec<Token>,
    pub(crate) directory: Option<Directory>,
    pub(crate) provisional: bool,
    /// The pod has, or may have, good files: from now on nothing may take them away.
    pub(crate) established: bool,
    /// Held so that the identity source keeps its eye on the pod.
    pub(crate) subscription: Subscription,
    pub(crate) identity: Option<Arc<Identity>>,
    /// The identity source has reported another identity than the one held.
    pub(crate) identity_changed: bool,
    pub(crate) identity_retry: Option<Retry>,
    /// The pod's other SVIDs, by their hints: those that stores want to be shown.
    pub(crate) others: HashMap<Arc<str>, Other>,
    pub(crate) jwts: HashMap<String, Arc<JwtSvid>>,
    /// By their audiences, where another JWT-SVID could not be had.
    pub(crate) jwt_retries: HashMap<String, Retry>,
    /// Held so that the cache keeps them.
    pub(crate) entries: HashMap<Source, Arc<Entry>>,
    /// References that only rendering brings to light, as the last turn met them.
    pub(crate) asked: Vec<Reference>,
    /// What the files in the directory were made from.
    pub(crate) written: Option<Inputs>,
    /// Label of the trouble that was last logged: said once, not at every turn.
    pub(crate) trouble: Option<&'static str>,
    /// The end of the identity whose end was last told of.
    pub(crate) ending: Option<SystemTime>,
    /// Turns in a row that failed.
    pub(crate) failures: u32,
}

/// Another SVID of the pod than the volume's: no file is made of it, but a store is asked by it.
#[derive(Debug)]
pub(crate) struct Other {
    /// The pod, by this SVID.
    pub(crate) workload: Workload,
    /// Held so that the identity source keeps its eye on it.
    pub(crate) _subscription: Subscription,
    pub(crate) identity: Option<Arc<Identity>>,
    /// The identity source has reported another than the one held.
    pub(crate) changed: bool,
    pub(crate) retry: Option<Retry>,
}

/// When an identity source that failed is asked again.
#[derive(Debug)]
pub(crate) struct Retry {
    pub(crate) error: Error,
    pub(crate) attempts: u32,
    pub(crate) at: Instant,
}

/// What a later Publish of a volume brings: a fresher token, perhaps another descriptor.
#[derive(Debug)]
pub struct News {
    pub(crate) tokens: Vec<Token>,
    pub(crate) directory: Option<OwnedFd>,
    pub(crate) provisional: bool,
}

impl Volume {
    /// A volume as its first Publish asks for it, and what came along.
    pub(crate) fn new(publish: Publish) -> (Self, News) {
        let Publish { id, workload, request, tokens, capacity, fs_group, directory, provisional, unheard: _ } =
            publish;
        let volume = Self {
            id,
            workload,
            request,
            capacity,
            fs_group,
            tokens: Vec::new(),
            directory: None,
            provisional: false,
            established: false,
            subscription: Subscription::default(),
            identity: None,
            identity_changed: false,
            identity_retry: None,
            others: HashMap::new(),
            jwts: HashMap::new(),
            jwt_retries: HashMap::new(),
            entries: HashMap::new(),
            asked: Vec::new(),
            written: None,
            trouble: None,
            ending: None,
            failures: 0,
        };
        (volume, News { tokens, directory, provisional })
    }

    /// Whether files of what was withdrawn are to be removed. Only from a pod that has them: one that is about to
    /// start waits for all of its files.
    pub(crate) fn wipes(&self) -> bool {
        self.established && self.request.on_revoked == OnRevoked::Wipe
    }

    /// Forgets everything but what the volume is to hold, as whom, and where: what a turn that panicked left behind is
    /// not to be built upon. Without a directory, if it cannot be looked through now, the driver sends another.
    pub(crate) fn begin_anew(&mut self, now: Instant) {
        self.directory = self.directory.take().and_then(|directory| directory.reopen(now).ok());
        self.identity = None;
        self.identity_retry = None;
        self.others.clear();
        self.jwts.clear();
        self.jwt_retries.clear();
        self.entries.clear();
        self.asked.clear();
        self.written = None;
    }

    /// Hears what the identity source reports; whether that is news.
    pub(crate) fn learn(&mut self, push: &Push) -> bool {
        let (identity, changed) = if push.workload == self.workload {
            (&self.identity, &mut self.identity_changed)
        } else {
            let Some(other) = push.workload.hint.as_ref().and_then(|hint| self.others.get_mut(hint)) else {
                return false;
            };
            (&other.identity, &mut other.changed)
        };
        let held = identity.as_ref().map(|identity| &identity.x509);
        *changed |= match (held, &push.svid) {
            (Some(held), Some(pushed)) => !Arc::ptr_eq(held, pushed),
            (None, None) => false,
            (None, Some(_)) | (Some(_), None) => true,
        };
        *changed
    }

    /// Whether its files are made from what `stale` speaks of.
    pub(crate) fn reads(&self, stale: &Stale) -> bool {
        self.entries.get(&stale.source).is_some_and(|entry| entry.is(stale))
    }

    /// Takes in what a Publish brought. A descriptor that comes replaces the one held: the driver knows which
    /// mount the pod sees.
    pub(crate) fn take(&mut self, news: News, now: Instant) -> Result<(), Error> {
        if !news.tokens.is_empty() {
            self.tokens = news.tokens;
            // A token is what a refused identity may have been waiting for.
            self.identity_retry = None;
            self.jwt_retries.clear();
        }
        if let Some(descriptor) = news.directory {
            let directory = Directory::open(&descriptor, self.capacity, now)?;
            self.established |= directory.generation().is_some();
            self.directory = Some(directory);
            self.written = None;
            self.provisional = news.provisional;
        }
        Ok(())
    }
}

impl From<Publish> for News {
    fn from(publish: Publish) -> Self {
        let Publish { tokens, directory, provisional, .. } = publish;
        Self { tokens, directory, provisional }
    }
}
