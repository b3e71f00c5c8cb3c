//! The keys in use, and how they follow each other.
//!
//! Root and JWT key come and go together, as a *generation*. One in memory lives seven days. Half-way its
//! successor is made and published, and only an hour later signs: by then every consumer has fetched the bundle
//! many times over. The old one stays in the bundle until it ends, and nothing it signed outlives it. A
//! generation from a file stays until the issuer is restarted.
//!
//! Beside its own, an issuer knows the public halves of what other replicas sign with (`publication`): they are in
//! its bundle, and their tickets are good here.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::identity::key::PrivateKey;
use crate::identity::svid::unix;
use crate::issuer::Error;
use crate::issuer::anchor::Anchor;
use crate::issuer::config::Config;
use crate::issuer::jwt::JwtKey;
use crate::issuer::root::{self, LIFE, Root};
use crate::spiffe::TrustDomain;

/// How often consumers are asked to fetch the bundle.
pub(crate) const REFRESH_HINT: Duration = Duration::from_secs(300);
/// How long a generation is published before it signs: twelve refresh hints.
const AHEAD: Duration = Duration::from_secs(12 * 300);

/// A root and a JWT key.
pub(crate) struct Generation {
    pub(crate) root: Root,
    pub(crate) jwt: JwtKey,
    /// The public half of both.
    pub(crate) anchor: Arc<Anchor>,
    signs_from: SystemTime,
    /// When its successor is due; never for one from a file.
    succeeded_at: Option<SystemTime>,
}

struct Ring {
    /// The oldest first; never empty.
    generations: Vec<Arc<Generation>>,
    /// Of other replicas, and of issuers that are gone and whose signatures live on.
    others: Vec<Arc<Anchor>>,
    sequence: i64,
    /// Ids of own JWT keys that are known to be published; without a publication all are taken to be.
    published: Option<HashSet<String>>,
    /// Whether anything may be signed: not before what is signed can be verified.
    open: bool,
}

/// All keys this issuer has, and the public ones of the others.
pub(crate) struct Keys {
    trust_domain: TrustDomain,
    ring: RwLock<Ring>,
    /// Counts changes of what is in the bundle.
    revision: watch::Sender<u64>,
}

impl Keys {
    /// The generation of the configured file, or a new one in memory.
    ///
    /// Where the bundle is published beside other replicas', nothing is signed before [`Self::open`].
    pub(crate) fn new(config: &Config, now: SystemTime) -> Result<Self, Error> {
        let first = match &config.root_file {
            None => in_memory(&config.trust_domain, now, now)?,
            Some(path) => {
                let file = root::read(path, &config.trust_domain, now)?;
                let jwt = match file.jwt_key {
                    Some(key) => JwtKey::new(&key),
                    None => PrivateKey::generate().and_then(|key| JwtKey::new(&key)),
                };
                let jwt = jwt.map_err(|error| Error::Root(error.to_string()))?;
                Generation::new(file.root, jwt, now, None)
            }
        };
        let alone = config.publication.is_none();
        let ring = Ring {
            generations: vec![Arc::new(first)],
            others: Vec::new(),
            // Unix time as the first number keeps the sequence rising over restarts.
            sequence: unix(now),
            published: (!alone).then(HashSet::new),
            open: alone,
        };
        Ok(Self {
            trust_domain: config.trust_domain.clone(),
            ring: RwLock::new(ring),
            revision: watch::Sender::new(0),
        })
    }

    /// The generation that signs at `now`, if any may.
    pub(crate) fn signing(&self, now: SystemTime) -> Option<Arc<Generation>> {
        self.read().open.then(|| self.latest(now)).flatten()
    }

    /// The generation that signs, or will once it is let.
    pub(crate) fn latest(&self, now: SystemTime) -> Option<Arc<Generation>> {
        let ring = self.read();
        let known = |generation: &&Arc<Generation>| {
            let published = ring.published.as_ref().filter(|_| ring.open);
            published.is_none_or(|published| published.contains(generation.anchor.kid()))
        };
        let candidates = || ring.generations.iter().filter(known);
        let ready = candidates().rev().find(|generation| generation.signs_from <= now);
        ready.or_else(|| candidates().next()).map(Arc::clone)
    }

    /// The public halves of this issuer's own generations, the oldest first.
    pub(crate) fn own(&self) -> Vec<Arc<Anchor>> {
        self.read().generations.iter().map(|generation| Arc::clone(&generation.anchor)).collect()
    }

    /// Everything in the bundle, what ends first before the rest, and the bundle's sequence number.
    pub(crate) fn bundle(&self) -> (Vec<Arc<Anchor>>, i64) {
        let ring = self.read();
        let own = ring.generations.iter().map(|generation| &generation.anchor);
        (union(own.chain(&ring.others).map(Arc::clone).collect()), ring.sequence)
    }

    /// DER of all roots.
    pub(crate) fn roots(&self) -> Vec<Vec<u8>> {
        let mut roots: Vec<Vec<u8>> = self.bundle().0.iter().map(|anchor| anchor.root.clone()).collect();
        // Replicas that share a root file.
        roots.dedup();
        roots
    }

    /// The anchor whose JWT key has this id.
    pub(crate) fn jwt_key(&self, kid: &str) -> Option<Arc<Anchor>> {
        self.bundle().0.into_iter().find(|anchor| anchor.kid() == kid)
    }

    /// Takes over what the publication says: the anchors of others, the bundle's sequence number, and which of our
    /// own keys are in it.
    pub(crate) fn join(&self, others: Vec<Arc<Anchor>>, sequence: i64, published: HashSet<String>) {
        let mut ring = self.write();
        let same = ring.others.len() == others.len()
            && ring.others.iter().zip(&others).all(|(one, two)| one.same(two))
            && ring.sequence == sequence;
        ring.published = Some(published);
        ring.others = others;
        ring.sequence = ring.sequence.max(sequence);
        drop(ring);
        if !same {
            self.changed();
        }
    }

    /// From now on what is published may sign.
    pub(crate) fn open(&self) {
        self.write().open = true;
        self.changed();
    }

    /// Whether what is published may sign: before, this knows of no other replica's keys.
    pub(crate) fn is_open(&self) -> bool {
        self.read().open
    }

    /// Tells of every change of the bundle.
    pub(crate) fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn changed(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }

    fn read(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Ring> {
        self.ring.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the successor that is due at `now` and drops what has ended; says whether anything changed.
    pub(crate) fn advance(&self, now: SystemTime) -> Result<bool, Error> {
        let changed = self.advanced(now)?;
        if changed {
            self.changed();
        }
        Ok(changed)
    }

    fn advanced(&self, now: SystemTime) -> Result<bool, Error> {
        let mut ring = self.write();
        let due = ring.generations.last().and_then(|last| last.succeeded_at).is_some_and(|due| due <= now);
        if !due {
            return Ok(drop_ended(&mut ring, now));
        }
        // After a long sleep nothing that may sign is left, and the successor can't wait its hour.
        let any_left = ring.generations.iter().any(|generation| generation.root.not_after > now + AHEAD);
        let from = if any_left { now + AHEAD } else { now };
        let next = Arc::new(in_memory(&self.trust_domain, now, from)?);
        ring.generations.push(next);
        drop_ended(&mut ring, now);
        ring.sequence = (ring.sequence + 1).max(unix(now));
        Ok(true)
    }

    /// When [`Self::advance`] has something to do next.
    pub(crate) fn next_change(&self) -> Option<SystemTime> {
        let ring = self.read();
        let due = ring.generations.last().and_then(|last| last.succeeded_at);
        let end = ring.generations.iter().filter(|generation| generation.succeeded_at.is_some());
        end.map(|generation| generation.root.not_after).chain(due).min()
    }
}

impl Generation {
    fn new(root: Root, jwt: JwtKey, signs_from: SystemTime, succeeded_at: Option<SystemTime>) -> Self {
        let anchor = Arc::new(Anchor::of(&root, &jwt));
        Self { root, jwt, anchor, signs_from, succeeded_at }
    }
}

/// Anchors in the one order that all replicas agree on, each once.
pub(crate) fn union(mut all: Vec<Arc<Anchor>>) -> Vec<Arc<Anchor>> {
    all.sort_by(|one, two| {
        let order = |anchor: &Anchor| (anchor.not_after, anchor.root.clone());
        order(one).cmp(&order(two)).then_with(|| one.kid().cmp(two.kid()))
    });
    all.dedup_by(|one, two| one.same(two));
    all
}

fn drop_ended(ring: &mut Ring, now: SystemTime) -> bool {
    let before = ring.generations.len();
    ring.generations
        .retain(|generation| generation.succeeded_at.is_none() || generation.root.not_after > now);
    let changed = ring.generations.len() != before;
    if changed {
        ring.sequence = (ring.sequence + 1).max(unix(now));
    }
    changed
}

fn in_memory(
    trust_domain: &TrustDomain,
    now: SystemTime,
    signs_from: SystemTime,
) -> Result<Generation, Error> {
    let jwt = PrivateKey::generate()
        .and_then(|key| JwtKey::new(&key))
        .map_err(|error| Error::Root(error.to_string()))?;
    let root = Root::generate(trust_domain, now)?;
    Ok(Generation::new(root, jwt, signs_from, Some(now + LIFE / 2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::tests::cluster::{Cluster, NOW};

    #[test]
    fn a_successor_is_published_before_it_signs_and_the_old_one_stays_until_it_ends() {
        let start = crate::identity::svid::moment(NOW);
        let keys = Keys::new(&Cluster::new().config(), start).unwrap();
        let first = keys.signing(start).unwrap();
        let (published, sequence) = keys.bundle();
        assert_eq!(published.len(), 1);
        assert_eq!(keys.next_change(), Some(start + LIFE / 2));
        assert!(!keys.advance(start + LIFE / 2 - Duration::from_secs(1)).unwrap());

        let half = start + LIFE / 2;
        assert!(keys.advance(half).unwrap());
        assert_eq!(keys.bundle().0.len(), 2);
        assert!(keys.bundle().1 > sequence);
        assert!(!keys.advance(half).unwrap());
        assert_eq!(keys.signing(half + AHEAD - Duration::from_secs(1)).unwrap().jwt.kid(), first.jwt.kid());
        let second = keys.signing(half + AHEAD).unwrap();
        assert_ne!(second.jwt.kid(), first.jwt.kid());
        assert!(keys.jwt_key(first.jwt.kid()).is_some(), "tickets and JWTs of the old key still count");

        assert_eq!(keys.next_change(), Some(start + LIFE));
        assert!(keys.advance(start + LIFE).unwrap());
        let left: Vec<_> = keys.bundle().0.iter().map(|one| one.kid().to_owned()).collect();
        assert_eq!(left[0], second.jwt.kid());
        assert!(!left.contains(&first.jwt.kid().to_owned()));
    }

    #[test]
    fn after_a_long_sleep_a_new_root_signs_at_once() {
        let keys = Keys::new(&Cluster::new().config(), crate::identity::svid::moment(NOW)).unwrap();
        let late = crate::identity::svid::moment(NOW) + 3 * LIFE;
        assert!(keys.advance(late).unwrap());
        assert_eq!(keys.bundle().0.len(), 1);
        assert!(keys.signing(late).unwrap().root.not_after > late);
    }
}
