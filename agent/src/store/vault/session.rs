//! One identity's standing at one store: its JWT-SVID, and the token that its plain reads share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::login::{Door, NoLogin, Renewed, current};
use super::reaper::{Reaper, Revocation};
use super::token::Token;
use crate::cache::pause;
use crate::clock::Clock;
use crate::identity::JwtSvid;
use crate::secret::Secret;
use crate::sources::{Caller, Mint};
use crate::spiffe::SpiffeId;

/// A session that nobody uses is kept this long: a pod that waits for its secret comes back.
const LINGER: Duration = Duration::from_secs(60);
/// A token that was replaced lives on this long, for reads that are under way with it.
const GRACE: Duration = Duration::from_secs(30);
/// A token younger than this that is refused is refused for its policy.
const BEYOND_DOUBT: Duration = Duration::from_secs(60);

/// The sessions of one store.
#[derive(Debug)]
pub(super) struct Sessions {
    known: Mutex<HashMap<SpiffeId, Kept>>,
    reaper: Reaper,
    clock: Clock,
}

#[derive(Debug)]
struct Kept {
    session: Arc<Session>,
    unused_since: Option<Instant>,
}

/// One identity's standing.
#[derive(Debug)]
pub(super) struct Session {
    jwt: tokio::sync::Mutex<Option<Arc<JwtSvid>>>,
    plain: tokio::sync::Mutex<Plain>,
    reaper: Reaper,
}

#[derive(Debug, Default)]
struct Plain {
    token: Option<Arc<Token>>,
    failure: Option<Failure>,
}

/// A login that failed is not tried again by everybody at once.
#[derive(Debug)]
struct Failure {
    why: NoLogin,
    attempts: u32,
    until: Instant,
}

impl Sessions {
    pub(super) fn new(reaper: Reaper, clock: Clock) -> Self {
        Self { known: Mutex::default(), reaper, clock }
    }

    /// The session of `id`.
    pub(super) fn of(&self, id: &SpiffeId) -> Arc<Session> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = known.entry(id.clone()).or_insert_with(|| Kept {
            session: Arc::new(Session {
                jwt: tokio::sync::Mutex::default(),
                plain: tokio::sync::Mutex::default(),
                reaper: self.reaper.clone(),
            }),
            unused_since: None,
        });
        kept.unused_since = None;
        Arc::clone(&kept.session)
    }

    /// Ends the sessions that nobody has used for a while, and says how many tokens are left.
    pub(super) fn sweep(&self) -> usize {
        let now = self.clock.now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, kept| {
            if Arc::strong_count(&kept.session) > 1 {
                kept.unused_since = None;
                return true;
            }
            let since = *kept.unused_since.get_or_insert(now);
            now.duration_since(since) < LINGER
        });
        known.values().filter(|kept| kept.session.has_token()).count()
    }
}

impl Session {
    fn has_token(&self) -> bool {
        self.plain.try_lock().map_or(true, |plain| plain.token.is_some())
    }

    /// A JWT-SVID of the caller's; none if a login shows none.
    pub(super) async fn jwt<M: Mint>(
        &self,
        door: &Door,
        mint: &M,
        caller: Caller<'_>,
    ) -> Result<Option<Arc<JwtSvid>>, NoLogin> {
        if !door.shows_jwt() {
            return Ok(None);
        }
        let mut held = self.jwt.lock().await;
        if let Some(jwt) = current(held.as_ref(), door.clock) {
            return Ok(Some(jwt));
        }
        let jwt = Arc::new(mint.mint(caller, &door.login.audience).await?);
        *held = Some(Arc::clone(&jwt));
        Ok(Some(jwt))
    }

    /// The token that plain reads share, if there is one that lives.
    pub(super) async fn held(&self, now: Instant) -> Option<Arc<Token>> {
        self.plain.lock().await.token.clone().filter(|token| token.is_alive(now))
    }

    /// A new login, beside all others.
    pub(super) async fn log_in<M: Mint>(
        &self,
        door: &Door,
        mint: &M,
        caller: Caller<'_>,
    ) -> Result<Token, NoLogin> {
        let jwt = self.jwt(door, mint, caller).await?;
        let token = door.log_in(caller, jwt.as_deref()).await;
        if token.is_err() {
            // The next try shows another: this one may be what was wrong.
            *self.jwt.lock().await = None;
        }
        token
    }

    /// The token that plain reads share: logged in for, renewed or replaced when it is due.
    pub(super) async fn token<M: Mint>(
        &self,
        door: &Door,
        mint: &M,
        caller: Caller<'_>,
    ) -> Result<Arc<Token>, NoLogin> {
        let mut plain = self.plain.lock().await;
        let now = door.clock.now();
        let living = plain.token.take().filter(|token| token.is_alive(now));
        plain.token.clone_from(&living);
        if let Some(token) = &living
            && token.is_fresh(now)
        {
            return Ok(Arc::clone(token));
        }
        if let Some(failure) = plain.failure.as_ref().filter(|failure| failure.until > now) {
            return living.ok_or_else(|| failure.why.clone());
        }
        let renewed = match &living {
            Some(token) => self.renewed(door, mint, caller, token).await,
            None => self.log_in(door, mint, caller).await,
        };
        match renewed {
            Ok(token) => {
                let token = Arc::new(token);
                if let Some(old) = living.filter(|old| !Arc::ptr_eq(&old.secret, &token.secret)) {
                    self.reaper.take(Revocation::of_token(&old, GRACE));
                }
                *plain = Plain { token: Some(Arc::clone(&token)), failure: None };
                Ok(token)
            }
            Err(why) => {
                let attempts = plain.failure.as_ref().map_or(0, |failure| failure.attempts) + 1;
                let rest = pause(&why.clone().error(""), attempts);
                plain.failure = Some(Failure { why: why.clone(), attempts, until: door.clock.now() + rest });
                // What is not renewed in time is still good until it ends.
                living.ok_or(why)
            }
        }
    }

    async fn renewed<M: Mint>(
        &self,
        door: &Door,
        mint: &M,
        caller: Caller<'_>,
        token: &Token,
    ) -> Result<Token, NoLogin> {
        if token.renewable {
            match door.renew(token).await? {
                Renewed::Token(token) if token.is_fresh(door.clock.now()) => return Ok(token),
                Renewed::Token(_) => {}
                Renewed::Refused(said) => {
                    tracing::debug!(
                        accessor = &*token.accessor,
                        said,
                        "a token is not renewed; logging in anew"
                    );
                }
            }
        }
        self.log_in(door, mint, caller).await
    }

    /// The server refused something to `token`. True: it does not know the token any more, and another may do better.
    /// Where it has not said that the token is `unknown` to it, a new one is not asked about: its policy is the likely reason.
    pub(super) async fn doubt(&self, door: &Door, token: &Arc<Token>, unknown: bool) -> bool {
        if !unknown && door.clock.now().duration_since(token.since) < BEYOND_DOUBT {
            return false;
        }
        // Not to be able to ask is no reason to log in anew.
        if door.knows(token).await.unwrap_or(true) {
            return false;
        }
        let mut plain = self.plain.lock().await;
        if plain.token.as_ref().is_some_and(|held| Arc::ptr_eq(held, token)) {
            tracing::warn!(
                accessor = &*token.accessor,
                "the server does not know a token any more; logging in anew"
            );
            plain.token = None;
        }
        true
    }

    /// Gives `token` up: something came to hang on it that must end sooner than the session.
    pub(super) async fn retire(&self, token: &Arc<Token>) {
        let mut plain = self.plain.lock().await;
        if plain.token.as_ref().is_some_and(|held| Arc::ptr_eq(held, token)) {
            plain.token = None;
        }
        self.reaper.take(Revocation::of_token(token, GRACE));
    }

    /// What must not be shown in messages about this session.
    pub(super) async fn shown(&self) -> Option<Arc<JwtSvid>> {
        self.jwt.lock().await.clone()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(token) = self.plain.get_mut().token.take() {
            self.reaper.take(Revocation::of_token(&token, Duration::ZERO));
        }
    }
}

/// No secret at all, where one is expected that must not be shown.
pub(super) fn nothing() -> Secret {
    Secret::new(Vec::new())
}
