mod events;
mod leases;
mod logins;
mod reads;
mod server;
mod trouble;
mod unchanged;
mod volume;

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::identity::{Identity, JwtSvid};
use crate::request::{Reference, StoreNames};
use crate::secret::Secret;
use crate::sources::{Caller, Mint};
use crate::testing::{caller, identity};

use server::{Say, Seen, Server, errors, say};

const API: &str = "spiffe://t/ns/pay/sa/api";

/// Mints texts, and counts them.
#[derive(Debug)]
struct FakeMint {
    clock: Clock,
    minted: AtomicUsize,
}

impl Mint for FakeMint {
    async fn mint(&self, caller: Caller<'_>, audience: &str) -> Result<JwtSvid, Error> {
        let serial = self.minted.fetch_add(1, Ordering::SeqCst) + 1;
        let (now, life) = (self.clock.wall(), Duration::from_secs(300));
        let token = Secret::from(format!("jwt{serial} {} {audience}", caller.identity.spiffe_id));
        Ok(JwtSvid { token, expires: now + life, renew_at: now + life / 2 })
    }
}

/// A store, and somebody who asks it.
struct Asker {
    store: VaultStore,
    mint: FakeMint,
    me: Identity,
    held: Option<Held>,
    alone: bool,
}

impl Asker {
    fn of(server: &Server, more: &str) -> Self {
        Self::at(&format!(
            "addresses: ['https://{}']\ncaFile: {}\n{more}",
            server.address,
            server.ca().display()
        ))
    }

    fn at(config: &str) -> Self {
        let config = serde_saphyr::from_str(config).unwrap();
        let clock = Clock::system();
        let store = VaultStore::open("vault", config, clock, &Families::default()).unwrap();
        Self {
            store,
            mint: FakeMint { clock, minted: AtomicUsize::new(0) },
            me: identity(API),
            held: None,
            alone: false,
        }
    }

    async fn answer(&mut self, reference: &str) -> Result<Answer, Error> {
        let stores: StoreNames = ["vault"].into_iter().collect();
        let reference = Reference::parse(&format!("vault:{reference}"), &stores).unwrap();
        let ask = Ask { caller: caller(&self.me), source: &reference.source, alone: self.alone };
        self.store.fetch(&self.mint, ask, &mut self.held).await
    }

    async fn fetch(&mut self, reference: &str) -> Fetched {
        match self.answer(reference).await {
            Ok(Answer::Secret(fetched) | Answer::Kept(fetched)) => fetched,
            other => panic!("{other:?}"),
        }
    }

    async fn refusal(&mut self, reference: &str) -> Error {
        self.answer(reference).await.unwrap_err()
    }
}

/// What a Vault says to logins, to questions about mounts, and to a few reads; `script` is asked first.
fn vault(
    mut script: impl FnMut(&Seen) -> Option<Say> + Send + 'static,
) -> impl FnMut(&Seen) -> Option<Say> + Send {
    let mut logins = 0;
    move |seen| {
        if let Some(said) = script(seen) {
            return Some(said);
        }
        let path = seen.path.as_str();
        let mount = |path: &str, kind: &str, version: Value| {
            say(200, json!({ "data": { "path": path, "type": kind, "options": version } }))
        };
        Some(match path {
            "auth/jwt/login" | "auth/cert/login" | "auth/spiffe/login" => {
                logins += 1;
                login(logins, 3600)
            }
            "sys/events/subscribe/kv*?json=true" => say(101, Value::Null),
            "auth/token/lookup-self" => say(200, json!({ "data": {} })),
            "auth/token/revoke-self" => say(204, Value::Null),
            "sys/leases/lookup" => say(200, json!({ "data": { "ttl": 60 } })),
            _ if path.starts_with("sys/health") => say(
                200,
                json!({ "initialized": true, "version": "1.21.0", "enterprise": false, "replication_dr_mode": "disabled" }),
            ),
            _ if path.starts_with("sys/internal/ui/mounts/kv1/") => {
                mount("kv1/", "kv", json!({ "version": "1" }))
            }
            _ if path.starts_with("sys/internal/ui/mounts/kv/") => {
                mount("kv/", "kv", json!({ "version": "2" }))
            }
            _ if path.starts_with("sys/internal/ui/mounts/database/") => {
                mount("database/", "database", Value::Null)
            }
            _ if path.starts_with("sys/internal/ui/mounts/pki/") => mount("pki/", "pki", Value::Null),
            _ if path.starts_with("sys/internal/ui/mounts/") => {
                errors(403, &["preflight capability check returned 403"])
            }
            "kv/data/app" => secret(1, &json!({ "password": "s3cret" })),
            "kv1/app" => say(
                200,
                json!({ "lease_id": "", "lease_duration": 2_764_800, "data": { "password": "old" } }),
            ),
            _ => errors(404, &[]),
        })
    }
}

fn login(serial: u32, ttl: u32) -> Say {
    say(
        200,
        json!({ "auth": {
            "client_token": format!("hvs.{serial}"), "accessor": format!("a{serial}"), "token_policies": ["default", "pay"],
            "lease_duration": ttl, "renewable": true, "token_type": "service",
        } }),
    )
}

fn secret(version: u64, data: &Value) -> Say {
    let metadata = json!({ "version": version, "created_time": "2026-01-01T00:00:00Z", "deletion_time": "", "destroyed": false });
    say(
        200,
        json!({ "request_id": "r-1", "lease_id": "", "lease_duration": 0, "renewable": false,
                "data": { "data": data, "metadata": metadata } }),
    )
}

fn text_of(fetched: &Fetched, name: &str) -> String {
    let text = document::text(&fetched.document, name)
        .unwrap_or_else(|| panic!("no {name} in {:?}", fetched.document));
    String::from_utf8(text.expose().to_vec()).unwrap()
}

/// Lets the clock jump.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

const NOBODY: fn(&Seen) -> Option<Say> = |_| None;
