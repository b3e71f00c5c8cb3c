//! As whom a turn asks: the volume's SVIDs and those that stores want to be shown, renewed when due, the last ones kept
//! when that fails.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::{Due, World, jitter};
use crate::Error;
use crate::cache::pause;
use crate::identity::{Identity, JwtSvid, Token, Workload};
use crate::request::Content;
use crate::sources::Sources;
use crate::volume::{Inputs, Other, Retry, Volume};

/// What is known of an identity between two turns.
struct Known<'v> {
    workload: &'v Workload,
    tokens: &'v [Token],
    identity: &'v mut Option<Arc<Identity>>,
    changed: &'v mut bool,
    retry: &'v mut Option<Retry>,
}

/// The identity: renewed when due, the last one kept while it is valid.
async fn renewed<S: Sources>(
    known: Known<'_>,
    world: &World<S>,
    due: &mut Due,
    trouble: &mut Option<Error>,
) -> Result<Arc<Identity>, Error> {
    let Known { workload, tokens, identity, changed, retry } = known;
    let (now, wall) = (world.clock.now(), world.clock.wall());
    let current = identity.clone().filter(|identity| identity.x509.not_after > wall);
    let changed = std::mem::take(changed);
    let resting = retry.as_ref().filter(|retry| retry.at > now && !changed);
    let renewed = match (&current, resting) {
        (Some(identity), _) if identity.renew_at > wall && !changed => Ok(Arc::clone(identity)),
        (_, Some(retry)) => Err(retry.error.clone()),
        (_, None) => world.sources.x509(workload, tokens, current.as_deref()).await.map(Arc::new),
    };
    let good = match renewed {
        Ok(renewed) => {
            *retry = None;
            renewed
        }
        Err(error) => {
            if resting.is_none() {
                *retry = Some(another(retry.as_ref(), &error, now));
            }
            due.at(retry.as_ref().map_or(now, |retry| retry.at));
            let withdrawn = matches!(error, Error::IdentityWithdrawn { .. });
            let Some(current) = current.filter(|_| !withdrawn) else {
                // Expired or taken back: no store is asked in its name any more, and no file of it is written.
                *identity = None;
                return Err(error);
            };
            trouble.get_or_insert(error);
            due.at(world.clock.instant_of(current.x509.not_after));
            current
        }
    };
    if good.renew_at > wall {
        due.at(world.clock.instant_of(good.renew_at));
    }
    Ok(good)
}

/// When to ask again after `error`, one more than the failure `before`.
fn another(before: Option<&Retry>, error: &Error, now: Instant) -> Retry {
    let attempts = before.map_or(0, |retry| retry.attempts) + 1;
    Retry { error: error.clone(), attempts, at: now + pause(error, attempts).mul_f64(jitter()) }
}

/// The volume's identity.
pub(super) async fn identity<S: Sources>(
    volume: &mut Volume,
    world: &World<S>,
    due: &mut Due,
    trouble: &mut Option<Error>,
) -> Result<Arc<Identity>, Error> {
    let known = Known {
        workload: &volume.workload,
        tokens: &volume.tokens,
        identity: &mut volume.identity,
        changed: &mut volume.identity_changed,
        retry: &mut volume.identity_retry,
    };
    let identity = renewed(known, world, due, trouble).await.inspect_err(|error| {
        if matches!(error, Error::IdentityWithdrawn { .. }) {
            volume.jwts.clear();
        }
    })?;
    let wall = world.clock.wall();
    // A root that came since: peers show SVIDs by it before this one is renewed.
    let roots = world.sources.roots().map(|roots| Arc::clone(&roots.borrow()));
    let identity = roots.and_then(|roots| identity.beside(&roots, wall)).map_or(identity, Arc::new);
    if volume.identity.as_ref().is_some_and(|before| before.spiffe_id != identity.spiffe_id) {
        // Somebody else from now on: what was read and minted for who it was before is not shown to who it is.
        volume.entries.clear();
        volume.jwts.clear();
    }
    volume.identity = Some(Arc::clone(&identity));
    Ok(identity)
}

/// The SVIDs that `stores` want to be shown in place of the volume's own, by their hints; or why there is none now.
pub(super) async fn others<S: Sources>(
    volume: &mut Volume,
    world: &World<S>,
    stores: impl Iterator<Item = &str>,
    due: &mut Due,
    trouble: &mut Option<Error>,
) -> HashMap<Arc<str>, Result<Arc<Identity>, Error>> {
    let own = volume.workload.hint.clone();
    let hints: HashSet<_> = stores.filter_map(|store| world.sources.hint(store)).collect();
    let hints: Vec<_> = hints.into_iter().filter(|hint| own.as_ref() != Some(hint)).collect();
    // All are followed before the first is waited for.
    for hint in &hints {
        let workload = volume.workload.hinted(hint);
        volume.others.entry(Arc::clone(hint)).or_insert_with(|| Other {
            _subscription: world.sources.subscribe(&workload),
            workload,
            identity: None,
            changed: false,
            retry: None,
        });
    }
    let mut others = HashMap::new();
    for hint in hints {
        let Some(other) = volume.others.get_mut(&hint) else { continue };
        let known = Known {
            workload: &other.workload,
            tokens: &volume.tokens,
            identity: &mut other.identity,
            changed: &mut other.changed,
            retry: &mut other.retry,
        };
        let identity = renewed(known, world, due, trouble).await;
        if let Ok(identity) = &identity {
            other.identity = Some(Arc::clone(identity));
        }
        others.insert(hint, identity);
    }
    others
}

/// One JWT-SVID for each audience the request names; or why a pod that runs has to do with the file it has.
pub(super) async fn jwts<S: Sources>(
    volume: &mut Volume,
    world: &World<S>,
    identity: &Identity,
    due: &mut Due,
    trouble: &mut Option<Error>,
) -> Result<HashMap<String, Result<Arc<JwtSvid>, Error>>, Error> {
    let wall = world.clock.wall();
    // Of somebody else than the files beside it a token must not be.
    let same = |written: &Inputs| written.identity.spiffe_id == identity.spiffe_id;
    let stays = volume.established && volume.written.as_ref().is_none_or(same);
    let mut jwts = HashMap::new();
    for spec in &volume.request.files {
        let Content::Jwt { audience } = &spec.content else { continue };
        if jwts.contains_key(audience) {
            continue;
        }
        let jwt = match volume.jwts.get(audience).cloned() {
            Some(jwt) if jwt.renew_at > wall => Ok(jwt),
            held => {
                let retries = &mut volume.jwt_retries;
                let resting = retries.get(audience).filter(|retry| retry.at > world.clock.now());
                let asked = if let Some(retry) = resting {
                    Err(retry.error.clone())
                } else {
                    let asked = world.sources.jwt(&volume.workload, &volume.tokens, identity, audience).await;
                    let asked = asked.map_err(|error| error.asked_by([spec.key.as_str()]));
                    match &asked {
                        Ok(_) => retries.remove(audience),
                        Err(error) => {
                            let retry = another(retries.get(audience), error, world.clock.now());
                            retries.insert(audience.clone(), retry)
                        }
                    };
                    asked
                };
                asked.map(Arc::new).or_else(|error| {
                    // One that has ended stays where it is for the sake of the files beside it, which go on being
                    // refreshed; a pod that is about to start gets none.
                    trouble.get_or_insert_with(|| error.clone());
                    held.filter(|held| volume.established || held.expires > wall).ok_or(error)
                })
            }
        };
        if let Some(retry) = volume.jwt_retries.get(audience) {
            due.at(retry.at);
        }
        if let Err(error) = &jwt
            && !stays
        {
            return Err(error.clone());
        }
        if let Ok(jwt) = &jwt
            && jwt.renew_at > wall
        {
            due.at(world.clock.instant_of(jwt.renew_at));
        }
        jwts.insert(audience.clone(), jwt);
    }
    let held = jwts.iter().filter_map(|(audience, jwt)| Some((audience.clone(), jwt.clone().ok()?)));
    volume.jwts = held.collect();
    Ok(jwts)
}
