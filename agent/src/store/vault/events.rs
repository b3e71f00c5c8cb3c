//! Changes as the server tells of them (Vault Enterprise, "Event notifications"), so that a secret is read again when it
//! has changed and not when its time has come. Polling goes on all the same: the server promises no delivery.
//!
//! Each identity listens with its own token, for a policy decides what an identity may hear of. An event says only that
//! something is worth a look: nothing in it ends up in a file.

mod notice;
mod stream;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::config::Namespace;
use super::login::Door;
use super::meters::{Meters, Streams};
use super::session::Session;
use super::wanted::Path;
use crate::request::Source;
use crate::sources::Stale;
use crate::spiffe::SpiffeId;

/// What a policy has to say for a stream to be opened.
pub(super) const LISTENING: &str = r#"path "sys/events/subscribe/kv*" { capabilities = ["read"] }"#;
/// Reports on their way to the keeper. When it falls behind, streams wait, and the server drops what they do not take.
const WAITING: usize = 256;

/// All that listens at one store.
#[derive(Debug)]
pub(super) struct Events {
    ears: Mutex<HashMap<(SpiffeId, Namespace), Weak<Ear>>>,
    begun: mpsc::UnboundedSender<Begun>,
    inbox: tokio::sync::Mutex<mpsc::UnboundedReceiver<Begun>>,
    outbox: mpsc::Sender<Stale>,
    reports: tokio::sync::Mutex<mpsc::Receiver<Stale>>,
    log: Log,
    meters: Meters,
}

/// A stream that is to be opened.
#[derive(Debug)]
struct Begun {
    ear: Weak<Ear>,
    /// Nobody needs it any more.
    ended: CancellationToken,
}

/// One identity's stream in one namespace. It ends with the last secret that is watched by it.
pub(super) struct Ear {
    spiffe_id: SpiffeId,
    namespace: Namespace,
    session: Arc<Session>,
    watched: Mutex<HashMap<Path, HashMap<Source, usize>>>,
    state: Mutex<State>,
    streams: Streams,
    _ends: DropGuard,
}

/// How a stream stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Opening,
    Open,
    /// Why it is not open.
    Closed(String),
}

/// A secret whose changes are heard of for as long as this is held.
#[derive(Debug)]
pub(super) struct Watch {
    ear: Arc<Ear>,
    path: Path,
    source: Source,
}

/// Trouble is logged once for a store, not once for each of its streams.
#[derive(Debug, Default)]
struct Log(Mutex<HashSet<Kind>>);

/// What keeps a stream from being open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// The server has no events.
    NotServed,
    /// It broke off, or no server answers.
    Broken,
}

impl Log {
    /// Whether it is the first of its kind since a stream was open.
    fn first(&self, kind: Kind) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(kind)
    }

    /// A stream is open. True: that had been missed.
    fn healed(&self) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = !told.is_empty();
        told.clear();
        missed
    }
}

impl Events {
    pub(super) fn new(meters: Meters) -> Self {
        let (begun, inbox) = mpsc::unbounded_channel();
        let (outbox, reports) = mpsc::channel(WAITING);
        Self {
            ears: Mutex::default(),
            begun,
            inbox: tokio::sync::Mutex::new(inbox),
            outbox,
            reports: tokio::sync::Mutex::new(reports),
            log: Log::default(),
            meters,
        }
    }

    /// Hears of changes of `source`, which is at `path`, with the token of its identity's session.
    pub(super) fn watch(
        &self,
        spiffe_id: &SpiffeId,
        namespace: &Namespace,
        session: &Arc<Session>,
        path: &Path,
        source: &Source,
    ) -> Watch {
        let mut ears = self.ears.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (spiffe_id.clone(), namespace.clone());
        let ear = ears.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let ended = CancellationToken::new();
            let ear = Arc::new(Ear {
                spiffe_id: spiffe_id.clone(),
                namespace: namespace.clone(),
                session: Arc::clone(session),
                watched: Mutex::default(),
                state: Mutex::new(State::Opening),
                streams: self.meters.stream(),
                _ends: ended.clone().drop_guard(),
            });
            ears.retain(|_, ear| ear.strong_count() > 0);
            ears.insert(key, Arc::downgrade(&ear));
            let begun = Begun { ear: Arc::downgrade(&ear), ended };
            // Where nobody receives any more, the agent is about to end.
            self.begun.send(begun).unwrap_or_default();
            ear
        });
        *ear.watched().entry(path.clone()).or_default().entry(source.clone()).or_default() += 1;
        Watch { ear, path: path.clone(), source: source.clone() }
    }

    /// The next secret that was reported as changed.
    pub(super) async fn stale(&self) -> Stale {
        match self.reports.lock().await.recv().await {
            Some(stale) => stale,
            // Never: the sending half is ours too.
            None => std::future::pending().await,
        }
    }

    /// Listens until `shutdown`.
    pub(super) async fn run(&self, door: &Door, store: &str, shutdown: &CancellationToken) {
        let mut inbox = self.inbox.lock().await;
        let mut streams = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = streams.next(), if !streams.is_empty() => {}
                Some(Begun { ear, ended }) = inbox.recv() => {
                    streams.push(async move {
                        ended.run_until_cancelled(self.listen(door, store, &ear)).await
                    });
                }
            }
        }
    }
}

impl Ear {
    fn watched(&self) -> std::sync::MutexGuard<'_, HashMap<Path, HashMap<Source, usize>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is watched at `path`.
    fn at(&self, path: &str) -> Vec<Source> {
        let watched = self.watched();
        let mut found = watched.iter().filter(|(known, _)| known.as_str() == path);
        found.next().map(|(_, sources)| sources.keys().cloned().collect()).unwrap_or_default()
    }

    /// All that is watched.
    fn all(&self) -> Vec<Source> {
        self.watched().values().flat_map(HashMap::keys).cloned().collect()
    }

    /// Takes on another state. False: it was this one already.
    fn becomes(&self, state: State) -> bool {
        self.streams.open(state == State::Open);
        let mut held = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let other = *held != state;
        *held = state;
        other
    }
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ear({})", self.spiffe_id)
    }
}

impl Watch {
    /// Whether it is this one's.
    pub(super) fn is(&self, session: &Arc<Session>, path: &Path) -> bool {
        Arc::ptr_eq(&self.ear.session, session) && self.path == *path
    }

    /// How the stream stands, in words.
    pub(super) fn told(&self) -> String {
        match &*self.ear.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Opening => "events: not heard yet".to_owned(),
            State::Open => "events: heard".to_owned(),
            State::Closed(why) => format!("events: NOT heard: {why}"),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.ear.watched();
        let Some(sources) = watched.get_mut(&self.path) else { return };
        if let Some(count) = sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&self.source);
            }
        }
        if sources.is_empty() {
            watched.remove(&self.path);
        }
    }
}
