//! Volumes of pods, with their secrets from such a store.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::cache::Cache;
use crate::identity::{Push, Roots, Subscription, Token, Workload};
use crate::keeper::{Handle, Keeper};
use crate::request::Request;
use crate::sources::{Sources, Stale};
use crate::testing::FakeSources;
use crate::turn::World;
use crate::volume::{Publish, VolumeId};

struct Real {
    store: VaultStore,
    mint: FakeMint,
    identities: FakeSources,
}

impl Sources for Real {
    async fn x509(
        &self,
        pod: &Workload,
        tokens: &[Token],
        current: Option<&Identity>,
    ) -> Result<Identity, Error> {
        self.identities.x509(pod, tokens, current).await
    }

    async fn jwt(
        &self,
        pod: &Workload,
        tokens: &[Token],
        id: &Identity,
        audience: &str,
    ) -> Result<JwtSvid, Error> {
        self.identities.jwt(pod, tokens, id, audience).await
    }

    async fn fetch(&self, ask: Ask<'_>, held: &mut Option<Held>) -> Result<Answer, Error> {
        self.store.fetch(&self.mint, ask, held).await
    }

    fn hint(&self, _: &str) -> Option<Arc<str>> {
        None
    }

    fn subscribe(&self, pod: &Workload) -> Subscription {
        self.identities.subscribe(pod)
    }

    async fn changed(&self) -> Push {
        self.identities.changed().await
    }

    async fn stale(&self) -> Stale {
        self.store.stale().await
    }

    async fn run(&self, shutdown: &CancellationToken) {
        self.store.run(shutdown.clone()).await;
    }

    fn reached(&self) -> Result<(), String> {
        Ok(())
    }

    fn roots(&self) -> Option<watch::Receiver<Roots>> {
        None
    }
}

/// Runs `work` beside a keeper and the store's own work, and ends both after it.
async fn beside<T>(server: &Server, work: impl AsyncFnOnce(Handle) -> T) -> T {
    beside_with(server, "", work).await
}

/// The same with more in the store's configuration.
async fn beside_with<T>(server: &Server, more: &str, work: impl AsyncFnOnce(Handle) -> T) -> T {
    let Asker { store, mint, .. } = Asker::of(server, &format!("leaseOverlap: 0s\n{more}"));
    let identities = FakeSources::default();
    let clock = Clock::system();
    *identities.clock.lock().unwrap() = Some(clock);
    let sources = Real { store: store.clone(), mint, identities };
    let world = Arc::new(World { sources, cache: Cache::new(clock), clock });
    let (keeper, handle) = Keeper::new(world, Arc::default());
    let shutdown = CancellationToken::new();
    let worked = async {
        let done = work(handle).await;
        shutdown.cancel();
        done
    };
    let ((), (), done) = tokio::join!(keeper.run(shutdown.clone()), store.run(shutdown.clone()), worked);
    done
}

fn publish(id: &str, dir: &TempDir, keys: &[(&str, &str)]) -> Publish {
    let stores = StoreNames::from_iter(["vault"]);
    let attributes = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let descriptor: OwnedFd = rustix::fs::open(dir.path(), flags, rustix::fs::Mode::empty()).unwrap();
    Publish {
        id: VolumeId::from(id),
        workload: Workload {
            namespace: "pay".into(),
            pod_name: id.into(),
            pod_uid: id.into(),
            service_account: "api".into(),
            hint: None,
        },
        request: Request::parse(attributes, &stores).unwrap(),
        tokens: Vec::new(),
        capacity: 1 << 20,
        fs_group: None,
        directory: Some(descriptor),
        provisional: false,
        unheard: None,
    }
}

fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn read(dir: &TempDir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join(name)).unwrap()
}

/// Credentials that are counted, with tokens by which they were made.
fn credentials(
    mut script: impl FnMut(&Seen) -> Option<Say> + Send + 'static,
) -> impl FnMut(&Seen) -> Option<Say> + Send + 'static {
    let mut made = 0;
    vault(move |seen| {
        script(seen).or_else(|| {
            (seen.path == "database/creds/app").then(|| {
                made += 1;
                let data = json!({ "username": format!("u{made}-{}", seen.token()) });
                say(200, json!({ "lease_id": format!("l{made}"), "lease_duration": 600, "renewable": true, "data": data }))
            })
        })
    })
}

const KEYS: &[(&str, &str)] = &[
    ("secret.countersign.dev/password", "vault:kv/data/app#password"),
    ("secret.countersign.dev/username", "vault:database/creds/app#username"),
    ("countersign.dev/refresh", "1s"),
];

#[tokio::test]
async fn pods_share_what_they_may_and_have_credentials_of_their_own() {
    let server = Server::start(credentials(NOBODY)).await;
    beside(&server, async |handle| {
        let dirs = [directory(), directory(), directory()];
        for (dir, id) in dirs.iter().zip(["one", "two", "three"]) {
            handle.publish(publish(id, dir, KEYS)).await.unwrap();
        }
        let seen = server.taken();
        let count = |path: &str| seen.iter().filter(|seen| seen.path == path).count();
        assert_eq!((count("kv/data/app"), count("database/creds/app"), count("auth/jwt/login")), (1, 3, 4));
        let names: Vec<String> = dirs.iter().map(|dir| read(dir, "username")).collect();
        assert!(names[0] != names[1] && names[1] != names[2], "{names:?}");
        // The end of a pod is the end of its own credential, and of nobody else's.
        let token = names[1].split_once('-').unwrap().1.to_owned();
        handle.forget(VolumeId::from("two")).await.unwrap();
        let revoked = loop {
            let revoked: Vec<_> =
                server.taken().into_iter().filter(|seen| seen.path == "auth/token/revoke-self").collect();
            if !revoked.is_empty() {
                break revoked;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(revoked.iter().map(Seen::token).collect::<Vec<_>>(), [token]);
    })
    .await;
    assert!(!server.lines().iter().any(|line| line.contains("revoke")), "the agent's end revokes nothing");
}

#[tokio::test]
async fn a_credential_lives_as_long_as_files_are_made_from_it() {
    let (broken, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new("none")));
    let (b, g) = (Arc::clone(&broken), Arc::clone(&gone));
    let server = Server::start(credentials(move |seen| match seen.path.as_str() {
        "database/creds/app" if b.load(Ordering::SeqCst) => {
            let data = json!({ "other": "x" });
            Some(say(
                200,
                json!({ "lease_id": "nameless", "lease_duration": 600, "renewable": true, "data": data }),
            ))
        }
        "sys/leases/lookup" if seen.body["lease_id"] == *g.lock().unwrap() => {
            Some(errors(400, &["invalid lease"]))
        }
        _ => None,
    }))
    .await;
    beside(&server, async |handle| {
        let dir = directory();
        handle.publish(publish("one", &dir, KEYS)).await.unwrap();
        let first = read(&dir, "username");
        let token = first.split_once('-').unwrap().1.to_owned();
        server.taken();
        broken.store(true, Ordering::SeqCst);
        *gone.lock().unwrap() = "l1";
        // Another is fetched, but the file cannot be made of it: it goes on with the first.
        let mut seen = Vec::new();
        while seen
            .iter()
            .filter(|seen: &&Seen| seen.path == "sys/leases/lookup" && seen.body["lease_id"] == "nameless")
            .count()
            < 2
        {
            seen.extend(server.taken());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(read(&dir, "username"), first);
        assert!(!seen.iter().any(|seen| seen.path == "auth/token/revoke-self"), "{seen:?}");
        broken.store(false, Ordering::SeqCst);
        *gone.lock().unwrap() = "nameless";
        while !server
            .taken()
            .iter()
            .any(|seen| seen.path == "auth/token/revoke-self" && seen.token() == token)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_ne!(read(&dir, "username"), first);
    })
    .await;
}

/// From the event to the file; what the event itself says is not what ends up there.
#[tokio::test]
async fn an_event_brings_a_change_long_before_it_is_due() {
    let current = Arc::new(AtomicU64::new(1));
    let version = Arc::clone(&current);
    let server = Server::start(vault(move |seen| {
        let version = version.load(Ordering::SeqCst);
        (seen.path == "kv/data/app").then(|| secret(version, &json!({ "password": format!("v{version}") })))
    }))
    .await;
    beside_with(&server, "events: true\n", async |handle| {
        let dir = directory();
        let keys = [
            ("secret.countersign.dev/password", "vault:kv/data/app#password"),
            ("countersign.dev/refresh", "12h"),
        ];
        handle.publish(publish("1", &dir, &keys)).await.unwrap();
        assert_eq!(read(&dir, "password"), "v1");
        while server.streams() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        current.store(2, Ordering::SeqCst);
        let metadata =
            json!({ "data_path": "kv/data/app", "modified": "true", "password": "from the event" });
        server.tell(&json!({ "data": { "event": { "metadata": metadata } } }).to_string());
        let arrives = async {
            while read(&dir, "password") != "v2" {
                assert_eq!(read(&dir, "password"), "v1");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), arrives).await.expect("the change");
    })
    .await;
}
