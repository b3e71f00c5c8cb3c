mod hints;
mod ill;
mod outage;
mod policies;
mod pushes;
mod stale;
mod told;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tonic::Code;

use super::*;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::identity::{Token, Workload};
use crate::request::{Request, StoreNames};
use crate::secret::Secret;
use crate::testing::FakeSources;

const MINUTE: Duration = Duration::from_secs(60);

/// A keeper at work, with sources that do as told.
struct Scene {
    world: Arc<World<FakeSources>>,
    handle: Handle,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    life: tokio::task::JoinHandle<()>,
}

impl Scene {
    fn new() -> Self {
        Self::telling(Recorder::off())
    }

    fn telling(events: Recorder) -> Self {
        Self::with(events, Notifier::off())
    }

    #[expect(clippy::disallowed_methods, reason = "the test owns the keeper's task and joins it")]
    fn with(events: Recorder, notifier: Notifier) -> Self {
        let clock = Clock::pinned(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        let sources = FakeSources::default();
        *sources.clock.lock().unwrap() = Some(clock);
        sources.put("a", "one");
        let world = Arc::new(World { sources, cache: Cache::new(clock), clock });
        let metrics = Arc::<Metrics>::default();
        let (keeper, handle) = Keeper::new(Arc::clone(&world), Arc::clone(&metrics));
        let shutdown = CancellationToken::new();
        let life = tokio::spawn(keeper.telling(events).notifying(notifier).run(shutdown.clone()));
        Self { world, handle, metrics, shutdown, life }
    }

    fn sources(&self) -> &FakeSources {
        &self.world.sources
    }

    async fn publish(
        &self,
        id: &str,
        sa: &str,
        keys: &[(&str, &str)],
        dir: Option<&Path>,
    ) -> Result<(), Error> {
        self.handle.publish(publish(id, sa, keys, dir)).await
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.life.await.unwrap();
    }
}

fn publish(id: &str, sa: &str, keys: &[(&str, &str)], dir: Option<&Path>) -> Publish {
    let stores = StoreNames::from_iter(["s", "slow", "for-external"]);
    let attributes = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Publish {
        id: VolumeId::from(id),
        workload: Workload {
            namespace: "n".into(),
            pod_name: "p".into(),
            pod_uid: "u".into(),
            service_account: sa.into(),
            hint: None,
        },
        request: Request::parse(attributes, &stores).unwrap(),
        tokens: vec![Token { audience: "countersign".into(), token: Secret::from("t".to_owned()) }],
        capacity: 1 << 20,
        fs_group: None,
        directory: dir.map(open),
        provisional: false,
        unheard: None,
    }
}

fn open(path: &Path) -> OwnedFd {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn read(dir: &TempDir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join(name)).unwrap()
}

fn down() -> Error {
    Error::StoreUnavailable { store: "s".into(), problem: "connection refused".into(), retry_after: None }
}

const SECRET: &[(&str, &str)] = &[("secret.countersign.dev/a", "s:a")];

#[tokio::test(start_paused = true)]
async fn ok_means_that_the_files_are_there() {
    let (scene, dir) = (Scene::new(), directory());
    scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap();
    assert_eq!(read(&dir, "a"), "one");
    // A republish brings a token and nothing else: nobody is asked.
    scene.publish("v", "a", SECRET, None).await.unwrap();
    assert_eq!((scene.sources().reads(), scene.sources().signed()), (1, 1));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_first_publish_that_fails_leaves_nothing() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().fail(down());
    let error = scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (Code::Unavailable, "secret.countersign.dev/a: store s: connection refused")
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let unknown = scene.publish("v", "a", SECRET, None).await.unwrap_err();
    assert_eq!(unknown, Error::NoDirectory);
    assert!(scene.handle.reconcile(vec![VolumeId::from("v")]).await.unwrap().is_empty());
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_secret_reaches_the_files_by_itself() {
    let (scene, dir) = (Scene::new(), directory());
    scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap();
    scene.sources().put("a", "two");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&dir, "a"), "two");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn trouble_keeps_the_files_and_a_republish_never_fails() {
    let (scene, dir) = (Scene::new(), directory());
    scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap();
    scene.sources().fail(down());
    tokio::time::sleep(MINUTE * 10).await;
    scene.publish("v", "a", SECRET, None).await.unwrap();
    assert_eq!(read(&dir, "a"), "one");
    let reads = scene.sources().reads();
    assert!((10..=20).contains(&reads), "backoff, not a storm: {reads} reads in ten minutes");
    scene.sources().put("a", "two");
    scene.sources().heal();
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&dir, "a"), "two");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn while_one_store_is_down_the_rest_goes_on() {
    let (scene, dir) = (Scene::new(), directory());
    let keys = [("secret.countersign.dev/a", "s:a"), ("jwt.countersign.dev/t", "aud")];
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    assert_eq!(read(&dir, "t"), "jwt 1 for aud");
    scene.sources().fail(down());
    tokio::time::sleep(Duration::from_secs(160)).await;
    assert_eq!(read(&dir, "t"), "jwt 2 for aud");
    assert_eq!((read(&dir, "a").as_str(), scene.sources().minted()), ("one", 2));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_renewed_at_half_its_life_and_kept_when_that_fails() {
    let (scene, dir) = (Scene::new(), directory());
    let keys = [("svid.countersign.dev/x509", "c,k,b"), ("secret.countersign.dev/a", "s:a")];
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    let first = read(&dir, "k");
    tokio::time::sleep(MINUTE * 31).await;
    assert_eq!(scene.sources().signed(), 2);
    let second = read(&dir, "k");
    assert_ne!(first, second);
    let trouble = Error::IdentityUnavailable { problem: "issuer 127.0.0.1:1: connection refused".into() };
    scene.sources().fail_identity(Some(trouble));
    tokio::time::sleep(MINUTE * 40).await;
    // Half of the second one's life has passed: secrets are still refreshed in its name.
    scene.sources().put("a", "two");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!((read(&dir, "a"), read(&dir, "k")), ("two".into(), second.clone()));
    // It has expired: no store is asked any more, and the files stay.
    tokio::time::sleep(MINUTE * 20).await;
    let reads = scene.sources().reads();
    scene.sources().put("a", "three");
    tokio::time::sleep(MINUTE * 20).await;
    assert_eq!(scene.sources().reads(), reads);
    assert_eq!((read(&dir, "a"), read(&dir, "k")), ("two".into(), second));
    scene.sources().fail_identity(None);
    // A fresh token wakes it up at once.
    scene.publish("v", "a", &keys, None).await.unwrap();
    assert_eq!(read(&dir, "a"), "three");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn forgetting_does_not_wait_for_a_store_that_hangs() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().hang("slow");
    let keys = [("secret.countersign.dev/a", "slow:a")];
    let publishing = scene.publish("v", "a", &keys, Some(dir.path()));
    let forgetting = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = tokio::time::Instant::now();
        scene.handle.forget(VolumeId::from("v")).await.unwrap();
        began.elapsed()
    };
    let (published, took) = tokio::join!(publishing, forgetting);
    assert_eq!((published.unwrap_err(), took), (Error::Forgotten, Duration::ZERO));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_wiped_and_what_is_only_unlisted_is_let_go() {
    let (scene, one, two, three) = (Scene::new(), directory(), directory(), directory());
    for (id, dir) in [("1", &one), ("2", &two), ("3", &three)] {
        scene.publish(id, "a", SECRET, Some(dir.path())).await.unwrap();
    }
    scene.handle.forget(VolumeId::from("1")).await.unwrap();
    assert_eq!(std::fs::read_dir(one.path()).unwrap().count(), 0);
    let held = scene.handle.reconcile(vec![VolumeId::from("3"), VolumeId::from("9")]).await.unwrap();
    assert_eq!(held, [VolumeId::from("3")]);
    // A list that was wrong must not cost a pod its files.
    assert_eq!(read(&two, "a"), "one");
    scene.handle.forget(VolumeId::from("never")).await.unwrap();
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_provisional_directory_is_closed_before_the_answer_and_replaced_by_the_next() {
    let (scene, dir) = (Scene::new(), directory());
    let links_to = |path: &Path| {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
            .filter(|target| target == path)
            .count()
    };
    let first = Publish { provisional: true, ..publish("v", "a", SECRET, Some(dir.path())) };
    scene.handle.publish(first).await.unwrap();
    assert_eq!((read(&dir, "a"), links_to(dir.path())), ("one".into(), 0));
    assert!(scene.handle.reconcile(vec![VolumeId::from("v")]).await.unwrap().is_empty());
    scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap();
    assert!(links_to(dir.path()) > 0);
    assert_eq!((scene.sources().reads(), scene.sources().signed()), (1, 1));
    scene.sources().put("a", "two");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&dir, "a"), "two");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_takes_over_filled_volumes_though_everything_is_down() {
    let (before, dir) = (Scene::new(), directory());
    before.publish("v", "a", SECRET, Some(dir.path())).await.unwrap();
    before.end().await;
    let after = Scene::new();
    after.sources().fail(down());
    after.publish("v", "a", SECRET, Some(dir.path())).await.unwrap();
    assert_eq!(read(&dir, "a"), "one");
    after.sources().put("a", "two");
    after.sources().heal();
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&dir, "a"), "two");
    after.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_storm_reads_once_for_each_identity_and_secret() {
    let scene = Scene::new();
    scene.sources().delay(Duration::from_millis(20));
    let dirs: Vec<_> = (0..250).map(|_| directory()).collect();
    let (ids, accounts): (Vec<_>, Vec<_>) =
        (0..250).map(|n| (format!("v{n}"), format!("sa{}", n % 25))).unzip();
    let publishes = (0..250).map(|n| scene.publish(&ids[n], &accounts[n], SECRET, Some(dirs[n].path())));
    for published in futures_util::future::join_all(publishes).await {
        published.unwrap();
    }
    assert_eq!(scene.sources().reads(), 25);
    // And one for each in every minute after that.
    tokio::time::sleep(MINUTE * 10).await;
    let reads = scene.sources().reads();
    assert!((25 * 9..=25 * 13).contains(&reads), "{reads}");
    assert!(dirs.iter().all(|dir| read(dir, "a") == "one"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_published_anew_is_not_disturbed_by_the_turn_of_the_one_before() {
    let (scene, old, new) = (Scene::new(), directory(), directory());
    scene.sources().delay(Duration::from_millis(10));
    let first = scene.publish("v", "a", SECRET, Some(old.path()));
    let second = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        scene.handle.forget(VolumeId::from("v")).await.unwrap();
        scene.publish("v", "a", SECRET, Some(new.path())).await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first, second), (Err(Error::Forgotten), Ok(())));
    assert_eq!(read(&new, "a"), "one");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_during_a_turn_is_taken_in_after_it() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().delay(Duration::from_millis(10));
    let publishes = (0..5).map(|_| scene.publish("v", "a", SECRET, Some(dir.path())));
    for published in futures_util::future::join_all(publishes).await {
        published.unwrap();
    }
    assert_eq!((scene.sources().reads(), read(&dir, "a")), (1, "one".into()));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn more_than_the_volume_holds_is_refused_before_a_byte_is_written() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().put("a", &"x".repeat(2 << 20));
    let error = scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.to_string().contains("2097152 bytes, the volume holds 1048576"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_only_a_branch_asks_for_is_refreshed_too() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().put("b", "first");
    let branch = r#"{% if secret("s:a") == "one" %}{{ secret("s:b") }}{% endif %}"#;
    scene.publish("v", "a", &[("template.countersign.dev/t", branch)], Some(dir.path())).await.unwrap();
    assert_eq!((read(&dir, "t").as_str(), scene.sources().reads()), ("first", 2));
    for value in ["second", "third"] {
        scene.sources().put("b", value);
        tokio::time::sleep(MINUTE * 2).await;
        assert_eq!(read(&dir, "t"), value);
    }
    // The branch is not taken any more: what it wanted is not read any more.
    scene.sources().put("a", "two");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&dir, "t"), "");
    assert_eq!(scene.world.cache.len(), 1);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_panics_costs_neither_the_files_nor_the_refreshing() {
    let (scene, dir) = (Scene::new(), directory());
    let keys = [("svid.countersign.dev/x509", "c,k,b"), ("secret.countersign.dev/a", "s:a")];
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    scene.sources().panic(5);
    scene.sources().put("a", "two");
    tokio::time::sleep(MINUTE).await;
    assert_eq!((read(&dir, "a").as_str(), read(&dir, "k").is_empty()), ("one", false));
    assert_eq!(scene.handle.reconcile(vec![VolumeId::from("v")]).await.unwrap(), [VolumeId::from("v")]);
    // Nobody has to come with another token or directory.
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&dir, "a"), "two");
    assert!((6..=10).contains(&scene.sources().reads()), "backoff, not a storm: {}", scene.sources().reads());
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_first_turn_that_panics_is_answered_and_leaves_nothing() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().panic(1);
    let error = scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap_err();
    assert_eq!((error.code(), std::fs::read_dir(dir.path()).unwrap().count()), (Code::Internal, 0));
    scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap();
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_answered_at_shutdown() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().hang("slow");
    let keys = [("secret.countersign.dev/a", "slow:a")];
    let publishing = scene.publish("v", "a", &keys, Some(dir.path()));
    let ending = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.shutdown.cancel();
    };
    let (published, ()) = tokio::join!(publishing, ending);
    assert_eq!(published.unwrap_err(), Error::ShuttingDown);
    assert_eq!(scene.handle.ping().await.unwrap_err(), Error::ShuttingDown);
    scene.end().await;
}
