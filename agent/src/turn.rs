//! The one path from a request to its files: identity, secrets, bytes, swap, and when to come again.
//!
//! First publish, refresh, rotation, retry and republish all are a turn; they differ only in why it ran.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rand::Rng;
use tokio::time::Instant;

use crate::Error;
use crate::cache::{Cache, Look, pause};
use crate::clock::Clock;
use crate::files::{Change, FileSet, default_mode};
use crate::identity::{Identity, JwtSvid};
use crate::render::{Rendered, render};
use crate::request::{Content, Reference, Source};
use crate::secret::Node;
use crate::sources::{Caller, Sources};
use crate::volume::{Inputs, Retry, Volume};

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

/// Takes `volume` through one turn.
pub async fn turn<S: Sources>(volume: &mut Volume, world: &World<S>) -> Turned {
    let mut due = Due(world.clock.now() + IDLE);
    let gathered = tokio::time::timeout(LIMIT, gather(volume, world, &mut due)).await.unwrap_or_else(|_| {
        Err(Error::Deadline { waiting_for: "its identity and secrets".to_owned(), limit: LIMIT })
    });
    let result = gathered.and_then(|gathered| {
        let change = match &gathered.files {
            Some(files) => write(volume, world, files)?,
            None => Change::Unchanged,
        };
        volume.written = Some(gathered.inputs);
        Ok((change, gathered.trouble))
    });
    if result.is_err() {
        volume.failures = volume.failures.saturating_add(1);
        let (first, longest) = WRITE_RETRY;
        let doubled = first.saturating_mul(1 << (volume.failures - 1).min(16)).min(longest);
        due.at(world.clock.now() + doubled.mul_f64(jitter()));
    } else {
        volume.failures = 0;
    }
    if let Some(directory) = &mut volume.directory
        && let Some(when) = directory.retire(world.clock.now())
    {
        due.at(when);
    }
    match result {
        Ok((change, trouble)) => Turned { result: Ok(change), trouble, due: due.0 },
        Err(error) => Turned { trouble: Some(error.clone()), result: Err(error), due: due.0 },
    }
}

fn write<S>(volume: &mut Volume, world: &World<S>, files: &FileSet) -> Result<Change, Error> {
    // None: it was handed back before the volume was attached, and the driver has not sent another yet.
    let directory = volume.directory.as_mut().ok_or(Error::NoDirectory)?;
    directory.replace(files, &world.clock)
}

async fn gather<S: Sources>(volume: &mut Volume, world: &World<S>, due: &mut Due) -> Result<Gathered, Error> {
    let mut trouble = None;
    let identity = identity(volume, world, due, &mut trouble).await?;
    let jwts = jwts(volume, world, &identity, due, &mut trouble).await?;
    let mut inputs = Inputs { secrets: HashMap::new(), held: Vec::new(), identity, jwts };
    let mut wanted: Vec<_> = volume.request.references().chain(&volume.asked).cloned().collect();
    volume.asked.clear();
    for round in 0..ROUNDS {
        look_up(volume, world, &mut inputs, &wanted, due, &mut trouble).await;
        if round == 0 && volume.written.as_ref().is_some_and(|written| written.same(&inputs)) {
            volume.asked = wanted.split_off(volume.request.references().count());
            return Ok(Gathered { files: None, inputs, trouble });
        }
        wanted.clear();
        let mut files = FileSet::default();
        for spec in &volume.request.files {
            match render(spec, &inputs, volume.capacity)? {
                Rendered::File(content) => {
                    let mode = spec.mode.unwrap_or_else(|| default_mode(volume.fs_group));
                    files.insert(spec.path.clone(), content, mode);
                }
                Rendered::Omitted => {}
                Rendered::Needs(references) => wanted.extend(references),
            }
        }
        if wanted.is_empty() {
            volume.entries.retain(|source, _| inputs.secrets.contains_key(source));
            return Ok(Gathered { files: Some(files), inputs, trouble });
        }
        volume.asked.extend_from_slice(&wanted);
    }
    let key = volume
        .request
        .files
        .iter()
        .find(|f| matches!(f.content, Content::Template(_)))
        .map(|f| f.key.clone());
    Err(Error::Template {
        key: key.unwrap_or_default(),
        problem: format!(
            "asks for ever more secrets after {ROUNDS} rounds; name them without one another's help"
        ),
    })
}

/// The volume's identity: renewed when due, the last one kept while it is valid.
async fn identity<S: Sources>(
    volume: &mut Volume,
    world: &World<S>,
    due: &mut Due,
    trouble: &mut Option<Error>,
) -> Result<Arc<Identity>, Error> {
    let (now, wall) = (world.clock.now(), world.clock.wall());
    let current = volume.identity.clone().filter(|identity| identity.x509.not_after > wall);
    let resting = volume.identity_retry.as_ref().filter(|retry| retry.at > now);
    let renewed = match (&current, resting) {
        (Some(identity), _) if identity.renew_at > wall => Ok(Arc::clone(identity)),
        (_, Some(retry)) => Err(retry.error.clone()),
        (_, None) => {
            world.sources.x509(&volume.workload, &volume.tokens, current.as_deref()).await.map(Arc::new)
        }
    };
    let identity = match renewed {
        Ok(identity) => {
            volume.identity_retry = None;
            identity
        }
        Err(error) => {
            if resting.is_none() {
                let attempts = volume.identity_retry.as_ref().map_or(0, |retry| retry.attempts) + 1;
                let at = now + pause(&error, attempts).mul_f64(jitter());
                volume.identity_retry = Some(Retry { error: error.clone(), attempts, at });
            }
            due.at(volume.identity_retry.as_ref().map_or(now, |retry| retry.at));
            let Some(identity) = current else {
                // Expired: no store is asked in its name any more, and no file of it is written.
                volume.identity = None;
                return Err(error);
            };
            trouble.get_or_insert(error);
            identity
        }
    };
    if identity.renew_at > wall {
        due.at(world.clock.instant_of(identity.renew_at));
    }
    volume.identity = Some(Arc::clone(&identity));
    Ok(identity)
}

/// One JWT-SVID for each audience the request names.
async fn jwts<S: Sources>(
    volume: &mut Volume,
    world: &World<S>,
    identity: &Identity,
    due: &mut Due,
    trouble: &mut Option<Error>,
) -> Result<HashMap<String, Arc<JwtSvid>>, Error> {
    let wall = world.clock.wall();
    let mut jwts = HashMap::new();
    for spec in &volume.request.files {
        let Content::Jwt { audience } = &spec.content else { continue };
        if jwts.contains_key(audience) {
            continue;
        }
        let held = volume.jwts.get(audience).filter(|jwt| jwt.expires > wall).cloned();
        let jwt = match held {
            Some(jwt) if jwt.renew_at > wall => jwt,
            held => match world.sources.jwt(&volume.workload, &volume.tokens, identity, audience).await {
                Ok(jwt) => Arc::new(jwt),
                Err(error) => {
                    let Some(held) = held else { return Err(error) };
                    due.at(world.clock.now() + pause(&error, volume.failures.max(3)).mul_f64(jitter()));
                    trouble.get_or_insert(error);
                    held
                }
            },
        };
        if jwt.renew_at > wall {
            due.at(world.clock.instant_of(jwt.renew_at));
        }
        jwts.insert(audience.clone(), jwt);
    }
    volume.jwts.clone_from(&jwts);
    Ok(jwts)
}

/// Asks the cache for everything `wanted` that is not among the `inputs` yet, all at once.
async fn look_up<S: Sources>(
    volume: &mut Volume,
    world: &World<S>,
    inputs: &mut Inputs,
    wanted: &[Reference],
    due: &mut Due,
    trouble: &mut Option<Error>,
) {
    // One look for each source, as fresh as the most impatient of its references wants it.
    let mut ages = HashMap::<&Source, Duration>::new();
    for reference in wanted.iter().filter(|reference| !inputs.secrets.contains_key(&reference.source)) {
        let age = reference.refresh.unwrap_or(volume.request.refresh);
        ages.entry(&reference.source).and_modify(|known| *known = age.min(*known)).or_insert(age);
    }
    let caller = Caller { workload: &volume.workload, tokens: &volume.tokens, identity: &inputs.identity };
    let looks = ages.into_iter().map(|(source, age)| {
        let entry = volume
            .entries
            .get(source)
            .map_or_else(|| world.cache.entry(&caller.identity.spiffe_id, source), Arc::clone);
        let id = &volume.id;
        async move {
            let (entry, look) = world.cache.look_for(id, &world.sources, entry, caller, age).await;
            (source.clone(), entry, look)
        }
    });
    let looks = join_all(looks).await;
    for (source, entry, look) in looks {
        volume.entries.insert(source.clone(), entry);
        due.at(look.due);
        inputs.held.extend(look.held.clone());
        inputs.secrets.insert(source, settle(look, volume.established, trouble));
    }
}

/// The last good answer serves a volume that has files already; a pod that is about to start waits for a fresh one.
fn settle(look: Look, established: bool, trouble: &mut Option<Error>) -> Result<Arc<Node>, Error> {
    match (look.document, look.trouble) {
        (Some(document), None) => Ok(document),
        (Some(document), Some(error)) if established => {
            trouble.get_or_insert(error);
            Ok(document)
        }
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
