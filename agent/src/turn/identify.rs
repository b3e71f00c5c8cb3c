//! As whom a turn asks: the volume's SVIDs, renewed when due, the last ones kept when that fails.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Due, World, jitter};
use crate::Error;
use crate::cache::pause;
use crate::identity::{Identity, JwtSvid};
use crate::request::Content;
use crate::sources::Sources;
use crate::volume::{Retry, Volume};

/// The volume's identity: renewed when due, the last one kept while it is valid.
pub(super) async fn identity<S: Sources>(
    volume: &mut Volume,
    world: &World<S>,
    due: &mut Due,
    trouble: &mut Option<Error>,
) -> Result<Arc<Identity>, Error> {
    let (now, wall) = (world.clock.now(), world.clock.wall());
    let current = volume.identity.clone().filter(|identity| identity.x509.not_after > wall);
    let changed = std::mem::take(&mut volume.identity_changed);
    let resting = volume.identity_retry.as_ref().filter(|retry| retry.at > now && !changed);
    let renewed = match (&current, resting) {
        (Some(identity), _) if identity.renew_at > wall && !changed => Ok(Arc::clone(identity)),
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
            let withdrawn = matches!(error, Error::IdentityWithdrawn { .. });
            let Some(identity) = current.filter(|_| !withdrawn) else {
                // Expired or taken back: no store is asked in its name any more, and no file of it is written.
                volume.identity = None;
                if withdrawn {
                    volume.jwts.clear();
                }
                return Err(error);
            };
            trouble.get_or_insert(error);
            due.at(world.clock.instant_of(identity.x509.not_after));
            identity
        }
    };
    if identity.renew_at > wall {
        due.at(world.clock.instant_of(identity.renew_at));
    }
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

/// One JWT-SVID for each audience the request names.
pub(super) async fn jwts<S: Sources>(
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
        let jwt = match volume.jwts.get(audience).cloned() {
            Some(jwt) if jwt.renew_at > wall => jwt,
            held => match world.sources.jwt(&volume.workload, &volume.tokens, identity, audience).await {
                Ok(jwt) => Arc::new(jwt),
                Err(error) => {
                    let error = error.asked_by([spec.key.as_str()]);
                    // One that has ended stays where it is for the sake of the files beside it, which go on being
                    // refreshed; a pod that is about to start gets none.
                    let held = held.filter(|held| volume.established || held.expires > wall);
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
