//! The keys in use, and how they follow each other.
//!
//! Root and JWT key come and go together, as a *generation*. One in memory lives seven days. Half-way its
//! successor is made and published, and only an hour later signs: by then every consumer has fetched the bundle
//! many times over. The old one stays in the bundle until it ends, and nothing it signed outlives it. A
//! generation from a file stays until the issuer is restarted.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use crate::identity::key::PrivateKey;
use crate::identity::svid::unix;
use crate::issuer::Error;
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
    signs_from: SystemTime,
    /// When its successor is due; never for one from a file.
    succeeded_at: Option<SystemTime>,
}

struct Ring {
    /// The oldest first; never empty.
    generations: Vec<Arc<Generation>>,
    sequence: i64,
}

/// All generations this issuer has.
pub(crate) struct Keys {
    trust_domain: TrustDomain,
    ring: RwLock<Ring>,
}

impl Keys {
    /// The generation of the configured file, or a new one in memory.
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
                Generation { root: file.root, jwt, signs_from: now, succeeded_at: None }
            }
        };
        // Unix time as the first number keeps the sequence rising over restarts.
        let ring = Ring { generations: vec![Arc::new(first)], sequence: unix(now) };
        Ok(Self { trust_domain: config.trust_domain.clone(), ring: RwLock::new(ring) })
    }

    /// The generation that signs at `now`, if any is left.
    pub(crate) fn signing(&self, now: SystemTime) -> Option<Arc<Generation>> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let ready = ring.generations.iter().rev().find(|generation| generation.signs_from <= now);
        ready.or(ring.generations.first()).map(Arc::clone)
    }

    /// All generations, the oldest first, and the bundle's sequence number.
    ///
    /// The one place that knows what is in the bundle: roots of other replicas join here.
    pub(crate) fn published(&self) -> (Vec<Arc<Generation>>, i64) {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        (ring.generations.clone(), ring.sequence)
    }

    /// DER of all roots.
    pub(crate) fn roots(&self) -> Vec<Vec<u8>> {
        self.published().0.iter().map(|generation| generation.root.der.clone()).collect()
    }

    /// The generation whose JWT key has this id.
    pub(crate) fn jwt_key(&self, kid: &str) -> Option<Arc<Generation>> {
        self.published().0.into_iter().find(|generation| generation.jwt.kid() == kid)
    }

    /// Makes the successor that is due at `now` and drops what has ended; says whether anything changed.
    pub(crate) fn advance(&self, now: SystemTime) -> Result<bool, Error> {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
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
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let due = ring.generations.last().and_then(|last| last.succeeded_at);
        let end = ring.generations.iter().filter(|generation| generation.succeeded_at.is_some());
        end.map(|generation| generation.root.not_after).chain(due).min()
    }
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
    Ok(Generation { root, jwt, signs_from, succeeded_at: Some(now + LIFE / 2) })
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
        let (published, sequence) = keys.published();
        assert_eq!(published.len(), 1);
        assert_eq!(keys.next_change(), Some(start + LIFE / 2));
        assert!(!keys.advance(start + LIFE / 2 - Duration::from_secs(1)).unwrap());

        let half = start + LIFE / 2;
        assert!(keys.advance(half).unwrap());
        assert_eq!(keys.published().0.len(), 2);
        assert!(keys.published().1 > sequence);
        assert!(!keys.advance(half).unwrap());
        assert_eq!(keys.signing(half + AHEAD - Duration::from_secs(1)).unwrap().jwt.kid(), first.jwt.kid());
        let second = keys.signing(half + AHEAD).unwrap();
        assert_ne!(second.jwt.kid(), first.jwt.kid());
        assert!(keys.jwt_key(first.jwt.kid()).is_some(), "tickets and JWTs of the old key still count");

        assert_eq!(keys.next_change(), Some(start + LIFE));
        assert!(keys.advance(start + LIFE).unwrap());
        let left: Vec<_> = keys.published().0.iter().map(|one| one.jwt.kid().to_owned()).collect();
        assert_eq!(left[0], second.jwt.kid());
        assert!(!left.contains(&first.jwt.kid().to_owned()));
    }

    #[test]
    fn after_a_long_sleep_a_new_root_signs_at_once() {
        let keys = Keys::new(&Cluster::new().config(), crate::identity::svid::moment(NOW)).unwrap();
        let late = crate::identity::svid::moment(NOW) + 3 * LIFE;
        assert!(keys.advance(late).unwrap());
        assert_eq!(keys.published().0.len(), 1);
        assert!(keys.signing(late).unwrap().root.not_after > late);
    }
}
