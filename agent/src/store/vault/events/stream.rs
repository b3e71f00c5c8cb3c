//! One stream: opened with the identity's token, listened to, and opened again when it breaks.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rand::Rng;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_util::time::DelayQueue;

use super::{Ear, Events, Kind, State, notice};
use crate::request::Source;
use crate::sources::Stale;
use crate::store::vault::answer::speakable;
use crate::store::vault::client::{Socket, Unheard};
use crate::store::vault::config::Namespace;
use crate::store::vault::login::Door;
use crate::store::vault::token::Token;

/// A change is followed within this long: all nodes hear of it at the same moment.
const SPREAD: Duration = Duration::from_secs(2);
/// What may have been missed while a stream was broken is looked for within this long.
const CATCH_UP: Duration = Duration::from_secs(30);
/// First and longest pause before a broken stream is opened again.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A stream that the policy forbids, and one of a server without events, are tried again after this.
const FORBIDDEN: Duration = Duration::from_secs(600);
const NOT_SERVED: Duration = Duration::from_secs(3600);
/// How often the token and the other side are looked after.
const BEAT: Duration = Duration::from_secs(15);
/// A server that answers no ping for this long is gone.
const SILENCE: Duration = Duration::from_secs(60);

/// Why a stream ended.
enum End {
    /// The session has another token: a stream lives no longer than its own.
    Replaced,
    /// In words.
    Broken(String),
}

/// Secrets that are due to be reported, each once.
#[derive(Default)]
struct Due {
    known: HashSet<Source>,
    queue: DelayQueue<Source>,
}

impl Due {
    fn within(&mut self, spread: Duration, sources: Vec<Source>) {
        for source in sources {
            if self.known.insert(source.clone()) {
                let delay = spread.mul_f64(rand::rng().random_range(0.0..=1.0));
                self.queue.insert(source, delay);
            }
        }
    }

    /// The next that is due; never, if none is.
    async fn next(&mut self) -> Source {
        match self.queue.next().await {
            Some(expired) => {
                let source = expired.into_inner();
                self.known.remove(&source);
                source
            }
            None => std::future::pending().await,
        }
    }
}

impl Events {
    /// Keeps one stream open.
    pub(super) async fn listen(&self, door: &Door, store: &str, ear: &Weak<Ear>) {
        let (mut due, mut attempts, mut missed) = (Due::default(), 0_u32, false);
        // Across a wait nothing holds the ear: it ends with those who watch.
        while let Some((token, namespace)) = held(ear, door).await {
            let opened = door.client.listen(&namespace, &token.secret).await;
            let Some(heard) = ear.upgrade() else { return };
            let pause = match opened {
                Ok(socket) => {
                    if self.log.healed() {
                        tracing::info!(store, "changes are told of again");
                    }
                    heard.becomes(State::Open);
                    if missed {
                        due.within(CATCH_UP, heard.all());
                    }
                    drop(heard);
                    let began = door.clock.now();
                    let end = self.hear(door, ear, socket, &token, &mut due).await;
                    let Some(heard) = ear.upgrade() else { return };
                    missed = true;
                    if door.clock.now().duration_since(began) >= BACKOFF.1 {
                        attempts = 0;
                    }
                    match end {
                        End::Replaced => {
                            heard.becomes(State::Opening);
                            Duration::ZERO
                        }
                        End::Broken(problem) => self.broken(store, &heard, problem, &mut attempts),
                    }
                }
                Err(Unheard::Trouble(problem)) => self.broken(store, &heard, problem, &mut attempts),
                Err(Unheard::NotServed(problem)) => {
                    if self.log.first(Kind::NotServed) {
                        tracing::warn!(
                            store,
                            problem,
                            "the server tells nobody of changes, which takes Vault Enterprise; secrets are looked at after refresh. Leave out events"
                        );
                    }
                    heard.becomes(State::Closed(problem));
                    NOT_SERVED
                }
                Err(Unheard::Forbidden(problem)) => {
                    if heard.becomes(State::Closed(problem.clone())) {
                        tracing::warn!(store, spiffe_id = %heard.spiffe_id, problem, "changes are not told of");
                    }
                    FORBIDDEN
                }
            };
            let pause = pause.mul_f64(rand::rng().random_range(0.8..=1.2));
            self.rest(door, ear, &token, pause, &mut due).await;
        }
    }

    /// Waits before the next try: that long, or until the session has another token.
    async fn rest(&self, door: &Door, ear: &Weak<Ear>, token: &Token, pause: Duration, due: &mut Due) {
        let resting = tokio::time::sleep(pause);
        tokio::pin!(resting);
        let mut beat = tokio::time::interval_at(Instant::now() + BEAT, BEAT);
        loop {
            tokio::select! {
                () = &mut resting => return,
                source = due.next() => self.report(ear, source).await,
                _ = beat.tick() => {
                    let Some(ear) = ear.upgrade() else { return };
                    let other = ear.session.held(door.clock.now()).await;
                    if other.is_some_and(|other| !Arc::ptr_eq(&other.secret, &token.secret)) {
                        return;
                    }
                }
            }
        }
    }

    fn broken(&self, store: &str, ear: &Ear, problem: String, attempts: &mut u32) -> Duration {
        if self.log.first(Kind::Broken) {
            tracing::warn!(
                store,
                problem,
                "changes are not told of; secrets are looked at after refresh meanwhile"
            );
        } else {
            tracing::debug!(store, problem, "changes are not told of");
        }
        ear.becomes(State::Closed(problem));
        let (first, longest) = BACKOFF;
        let pause = first.saturating_mul(1 << (*attempts).min(16)).min(longest);
        *attempts = attempts.saturating_add(1);
        pause
    }

    /// Listens until the stream ends, or nobody needs it.
    async fn hear(
        &self,
        door: &Door,
        ear: &Weak<Ear>,
        mut socket: Socket,
        token: &Arc<Token>,
        due: &mut Due,
    ) -> End {
        let mut beat = tokio::time::interval_at(Instant::now() + BEAT, BEAT);
        let mut last = door.clock.now();
        loop {
            tokio::select! {
                message = socket.next() => {
                    last = door.clock.now();
                    match message {
                        Some(Ok(Message::Text(text))) => {
                            let (Some(path), Some(ear)) = (notice::changed(&text), ear.upgrade()) else { continue };
                            due.within(SPREAD, ear.at(&path));
                        }
                        Some(Ok(Message::Close(frame))) => {
                            let reason = frame.map(|frame| speakable(&frame.reason, &[&token.secret]));
                            let reason = reason.filter(|reason| !reason.is_empty()).map(|it| format!(": {it}"));
                            return End::Broken(format!("the server closed the stream{}", reason.unwrap_or_default()));
                        }
                        // Answers to our own, and frames that no server of this kind sends.
                        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_))) => {}
                        Some(Err(error)) => return End::Broken(format!("the stream broke off: {error}")),
                        None => return End::Broken("the stream broke off".to_owned()),
                    }
                }
                source = due.next() => self.report(ear, source).await,
                _ = beat.tick() => {
                    let now = door.clock.now();
                    if now.duration_since(last) > SILENCE {
                        return End::Broken(format!("the server was silent for {} s", SILENCE.as_secs()));
                    }
                    let current = match ear.upgrade() {
                        Some(ear) => ear.session.held(now).await,
                        None => None,
                    };
                    if !current.is_some_and(|current| Arc::ptr_eq(&current.secret, &token.secret)) {
                        return End::Replaced;
                    }
                    if let Err(error) = socket.send(Message::Ping(Bytes::new())).await {
                        return End::Broken(format!("the stream broke off: {error}"));
                    }
                }
            }
        }
    }

    async fn report(&self, ear: &Weak<Ear>, source: Source) {
        let Some(spiffe_id) = ear.upgrade().map(|ear| ear.spiffe_id.clone()) else { return };
        // Fails with the agent's end alone.
        self.outbox.send(Stale { spiffe_id, source }).await.unwrap_or_default();
    }
}

/// The session's token, as soon as it has one that lives: a read brings it. None: nobody needs it any more.
async fn held(ear: &Weak<Ear>, door: &Door) -> Option<(Arc<Token>, Namespace)> {
    loop {
        let ear = ear.upgrade()?;
        let token = ear.session.held(door.clock.now()).await;
        let namespace = ear.namespace.clone();
        drop(ear);
        if let Some(token) = token {
            return Some((token, namespace));
        }
        tokio::time::sleep(BEAT).await;
    }
}
