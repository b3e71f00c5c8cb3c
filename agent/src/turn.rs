//! The one path from a request to its files: identity, secrets, bytes, swap, and when to come again.
//!
//! First publish, refresh, rotation, retry and republish all are a turn; they differ only in why it ran.

mod compose;
mod draft;
mod identify;
mod mixture;

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use rand::Rng;
use tokio::time::Instant;
use tracing::error;

use crate::Error;
use crate::cache::{Cache, Look};
use crate::clock::Clock;
use crate::files::{Change, FileSet};
use crate::request::{Reference, Source};
use crate::secret::Node;
use crate::sources::{Caller, Sources};
use crate::volume::{Inputs, Volume};
use compose::{Composed, ages, compose, lapsed};
use identify::{identity, jwts, others};

/// How long the files of one volume may be waited for: kubelet gives two minutes, the driver a minute and a half.
const LIMIT: Duration = Duration::from_secs(75);
/// Rounds in which a template may ask for more secrets after having seen others.
const ROUNDS: usize = 16;
/// A volume without anything due is looked at this often all the same.
const IDLE: Duration = Duration::from_secs(3600);
/// Files that could not be written are tried again after this, doubled at each failure.
const WRITE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What turns share.
#[derive(Debug)]
pub struct World<S> {
    /// Identities and secrets.
    pub sources: S,
    /// The node cache.
    pub cache: Cache,
    /// Time.
    pub clock: Clock,
}

/// What came of a turn.
#[derive(Debug)]
pub struct Turned {
    /// Whether the directory holds everything that was asked for. Trouble that left the last good files in place
    /// is an error for a volume that never had any, and `trouble` for one that has.
    pub result: Result<Change, Error>,
    /// Why something is not as fresh as it should be.
    pub trouble: Option<Error>,
    /// How many files the volume lacks because what they are made from was withdrawn, and the pod wants it so.
    pub left_out: usize,
    /// Paths of the files that a pod which runs, and asked to be told, finds changed.
    pub changed: BTreeSet<String>,
    /// When the next turn is due.
    pub due: Instant,
}

/// Collects the earliest moment at which something is due.
struct Due(Instant);

impl Due {
    fn at(&mut self, when: Instant) {
        self.0 = self.0.min(when);
    }
}

/// What was gathered, and the first trouble met on the way.
struct Gathered {
    /// None: nothing that the files in the directory are made from has changed.
    files: Option<FileSet>,
    inputs: Inputs,
    trouble: Option<Error>,
}

/// Takes `volume` through one turn, and through a panic in it: then everything it knew is forgotten but what it is to
/// hold and where, and it comes again as after any other trouble. Its files stay as they are.
pub async fn unbroken<S: Sources>(volume: &mut Volume, world: &World<S>) -> Turned {
    // Safe to unwind through, for nothing that the turn may have left half done is looked at again.
    if let Ok(turned) = AssertUnwindSafe(turn(volume, world)).catch_unwind().await {
        return turned;
    }
    error!(volume_id = %volume.id, pod = %volume.workload, "BUG: a turn panicked; its volume begins anew");
    volume.begin_anew(world.clock.now());
    let due = world.clock.now() + failed(volume);
    let changed = BTreeSet::new();
    Turned { result: Err(Error::Fault), trouble: Some(Error::Fault), left_out: 0, changed, due }
}

/// Counts a failed turn; how long to wait for the next.
fn failed(volume: &mut Volume) -> Duration {
    volume.failures = volume.failures.saturating_add(1);
    let (first, longest) = WRITE_RETRY;
    first.saturating_mul(1 << (volume.failures - 1).min(16)).min(longest).mul_f64(jitter())
}

/// Takes `volume` through one turn.
async fn turn<S: Sources>(volume: &mut Volume, world: &World<S>) -> Turned {
    let mut due = Due(world.clock.now() + IDLE);
    let gathered = tokio::time::timeout(LIMIT, gather(volume, world, &mut due)).await.unwrap_or_else(|_| {
        Err(Error::Deadline { waiting_for: "its identity and secrets".to_owned(), limit: LIMIT })
    });
    let mut changed = BTreeSet::new();
    let result = gathered.and_then(|gathered| {
        if let (Some(files), Some(directory)) = (&gathered.files, &volume.directory)
            && volume.established
            && volume.request.on_change.is_some()
        {
            changed = directory.differing(files);
        }
        let change = match &gathered.files {
            Some(files) => write(volume, world, files)?,
            None => Change::Unchanged,
        };
        let lacking = volume.written.insert(gathered.inputs).lacking.as_ref();
        let trouble = gathered.trouble.or_else(|| lacking.map(|lacking| lacking.error.clone()));
        Ok((change, trouble))
    });
    if result.is_err() {
        due.at(world.clock.now() + failed(volume));
    } else {
        volume.failures = 0;
    }
    if let Some(directory) = &mut volume.directory
        && let Some(when) = directory.retire(world.clock.now())
    {
        due.at(when);
    }
    let lacking = volume.written.as_ref().and_then(|written| written.lacking.as_ref());
    let (left_out, due) = (lacking.map_or(0, |lacking| lacking.files), due.0);
    match result {
        Ok((change, trouble)) => Turned { result: Ok(change), trouble, left_out, changed, due },
        Err(error) => {
            let (trouble, changed) = (Some(error.clone()), BTreeSet::new());
            Turned { result: Err(error), trouble, left_out, changed, due }
        }
    }
}

fn write<S>(volume: &mut Volume, world: &World<S>, files: &FileSet) -> Result<Change, Error> {
    // None: it was handed back before the volume was attached, and the driver has not sent another yet.
    let directory = volume.directory.as_mut().ok_or(Error::NoDirectory)?;
    directory.replace(files, &world.clock)
}

async fn gather<S: Sources>(volume: &mut Volume, world: &World<S>, due: &mut Due) -> Result<Gathered, Error> {
    let mut trouble = None;
    let identity = match identity(volume, world, due, &mut trouble).await {
        Ok(identity) => identity,
        Err(error) => {
            let (files, inputs) = lapsed(volume, world.clock.wall(), &error).ok_or_else(|| error.clone())?;
            return Ok(Gathered { files: Some(files), inputs, trouble: Some(error) });
        }
    };
    let jwts = jwts(volume, world, &identity, due, &mut trouble).await?;
    let mut inputs = Inputs { secrets: HashMap::new(), held: HashMap::new(), identity, jwts, lacking: None };
    let mut wanted: Vec<_> = volume.request.references().chain(&volume.asked).cloned().collect();
    volume.asked.clear();
    let mut round = 0;
    loop {
        look_up(volume, world, &mut inputs, &wanted, due, &mut trouble).await?;
        if let Some(written) = volume.written.as_ref()
            && round == 0
            && written.same(&inputs)
            && !ages(volume, &inputs, world.clock.wall())
        {
            inputs.lack_as(written);
            volume.asked = wanted.split_off(volume.request.references().count());
            return Ok(Gathered { files: None, inputs, trouble });
        }
        round += 1;
        wanted = match compose(volume, &mut inputs, world.clock.wall(), round == ROUNDS)? {
            Composed::Needs(references) => references,
            Composed::Files(files) => {
                volume.entries.retain(|source, _| inputs.secrets.contains_key(source));
                return Ok(Gathered { files: Some(files), inputs, trouble });
            }
        };
        volume.asked.extend_from_slice(&wanted);
    }
}

/// Asks the cache for everything `wanted` that is not among the `inputs` yet, all at once.
async fn look_up<S: Sources>(
    volume: &mut Volume,
    world: &World<S>,
    inputs: &mut Inputs,
    wanted: &[Reference],
    due: &mut Due,
    trouble: &mut Option<Error>,
) -> Result<(), Error> {
    // One look for each source, as fresh as the most impatient of its references wants it.
    let mut ages = HashMap::<&Source, Duration>::new();
    for reference in wanted.iter().filter(|reference| !inputs.secrets.contains_key(&reference.source)) {
        let age = reference.refresh.unwrap_or(volume.request.refresh);
        ages.entry(&reference.source).and_modify(|known| *known = age.min(*known)).or_insert(age);
    }
    let others = others(volume, world, ages.keys().map(|source| &*source.store), due, trouble).await;
    let as_whom = |source: &Source| -> Result<Caller<'_>, Error> {
        let (workload, identity) = match world
            .sources
            .hint(&source.store)
            .and_then(|hint| Some((&volume.others.get(&hint)?.workload, others.get(&hint)?)))
        {
            Some((workload, identity)) => (workload, identity.as_ref().map_err(Clone::clone)?),
            None => (&volume.workload, &inputs.identity),
        };
        Ok(Caller { workload, tokens: &volume.tokens, identity })
    };
    let wipes = volume.wipes();
    let looks = ages.into_iter().map(|(source, age)| {
        let (held, caller, id) = (volume.entries.get(source), as_whom(source), &volume.id);
        async move {
            let (entry, look) = match caller {
                Ok(caller) => {
                    let who = &caller.identity.spiffe_id;
                    let held = held.filter(|entry| entry.is_of(who)).map(Arc::clone);
                    let entry = held.unwrap_or_else(|| world.cache.entry(who, source));
                    let (entry, look) = world.cache.look_for(id, &world.sources, entry, caller, age).await;
                    (Some(entry), look)
                }
                Err(error) => {
                    let look = world.cache.unasked(held, error, world.clock.now() + IDLE).await;
                    // No file shows any more what was read by an SVID that was taken back: its leases go, too.
                    let kept = !(look.withdrawn && wipes);
                    let look = Look { held: look.held.filter(|_| kept), ..look };
                    (held.filter(|_| kept).map(Arc::clone), look)
                }
            };
            (source.clone(), entry, look)
        }
    });
    let looks = join_all(looks).await;
    let mut doubtful = None;
    for (source, entry, look) in looks {
        match entry {
            Some(entry) => volume.entries.insert(source.clone(), entry),
            None => volume.entries.remove(&source),
        };
        due.at(look.due);
        inputs.held.extend(look.held.clone().map(|held| (source.clone(), held)));
        if volume.wipes() && look.document.is_none() && !look.withdrawn {
            // Nothing is at hand that could stay, and nothing may go on a store's first word.
            doubtful = doubtful.or_else(|| {
                let withdrawal = look.trouble.clone().filter(Error::is_withdrawal);
                withdrawal.map(|error| error.asked_by(volume.request.keys_of(&source)))
            });
        }
        let settled = settle(&source, look, volume, trouble);
        inputs.secrets.insert(source, settled);
    }
    doubtful.map_or(Ok(()), Err)
}

/// The last good answer serves a volume that has files already; a pod that is about to start waits for a fresh one,
/// unless it says otherwise.
fn settle(
    source: &Source,
    look: Look,
    volume: &Volume,
    trouble: &mut Option<Error>,
) -> Result<Arc<Node>, Error> {
    let serves = |error: &Error| {
        if volume.established {
            !(look.withdrawn && volume.wipes())
        } else {
            volume.request.stale_ok && matches!(error, Error::StoreUnavailable { .. })
        }
    };
    match (look.document, look.trouble) {
        (Some(document), None) => Ok(document),
        (Some(document), Some(error)) if serves(&error) => {
            trouble.get_or_insert_with(|| error.asked_by(volume.request.keys_of(source)));
            Ok(document)
        }
        // Rendering finds out which files lack it, and may do without.
        (_, Some(error)) => Err(error),
        (None, None) => Err(Error::StoreUnavailable {
            store: String::new(),
            problem: "not read yet".to_owned(),
            retry_after: None,
        }),
    }
}

fn jitter() -> f64 {
    rand::rng().random_range(0.9..=1.1)
}
