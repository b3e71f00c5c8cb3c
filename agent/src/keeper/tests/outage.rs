//! A store is away for an hour, and a node is full of pods that use it.

use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt;

use super::*;
use crate::kubernetes::events::Reason;

const VOLUMES: usize = 200;
const ACCOUNTS: usize = 25;
const OUTAGE: Duration = Duration::from_secs(3600);

/// What was logged.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Paper {
    fn lines(&self) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).lines().count()
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The age of the oldest secret whose refresh fails, as it is seen from outside.
fn stale(scene: &Scene) -> f64 {
    scene.metrics.cache(&scene.world.cache);
    let text = scene.metrics.text().unwrap();
    let line = text.lines().find(|line| line.starts_with("countersign_secret_stale_seconds{store=\"s\"}"));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_a_store_costs_nothing_but_news() {
    let paper = Paper::default();
    let to = paper.clone();
    let subscriber = fmt().with_max_level(tracing::Level::INFO).with_writer(move || to.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (recorder, mut told) = Recorder::pair();
    let scene = Scene::telling(recorder);
    let dirs: Vec<_> = (0..VOLUMES).map(|_| directory()).collect();
    for (number, dir) in dirs.iter().enumerate() {
        let account = format!("a{}", number % ACCOUNTS);
        scene.publish(&format!("v{number}"), &account, SECRET, Some(dir.path())).await.unwrap();
    }
    let (asked, said) = (scene.sources().reads(), paper.lines());
    assert!(stale(&scene) < 1.0, "nothing is stale yet");

    scene.sources().fail(down());
    let mut events = HashSet::new();
    for _ in 0..60 {
        tokio::time::sleep(OUTAGE / 60).await;
        while let Ok(note) = told.try_recv() {
            assert_eq!(note.reason, Reason::RefreshFailing);
            events.insert(note.message);
        }
    }
    assert!(dirs.iter().all(|dir| read(dir, "a") == "one"), "files stay");
    assert_eq!(events.len(), 1, "pods are told one thing: {events:?}");
    let lines = paper.lines() - said;
    assert!(lines <= VOLUMES, "one line a volume, not one a try: {lines}");
    let tries = scene.sources().reads() - asked;
    assert!(tries <= ACCOUNTS * 80, "an identity asks about once a minute: {tries} tries");
    assert!(stale(&scene) >= OUTAGE.as_secs_f64(), "staleness is seen: {}", stale(&scene));
    scene.publish("v0", "a0", SECRET, None).await.unwrap();

    // Recovery does not come in one wave: identities ask when they are due, as they were spread before.
    scene.sources().put("a", "two");
    scene.sources().heal();
    let asked = scene.sources().reads();
    let mut busiest = 0;
    let mut before = asked;
    for _ in 0..120 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = scene.sources().reads();
        busiest = busiest.max(now - before);
        before = now;
    }
    assert!(dirs.iter().all(|dir| read(dir, "a") == "two"), "all follow again");
    assert!(busiest <= ACCOUNTS / 2, "{busiest} of {ACCOUNTS} identities in one second");
    assert!(stale(&scene) < 1.0, "nothing is stale any more");
    scene.end().await;
}
