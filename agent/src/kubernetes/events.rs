//! Events on pods, for what kubelet cannot see: it reports what goes wrong with a publish, and knows nothing of what
//! happens to the files afterwards.
//!
//! Said once for each pod and reason: what is repeated within ten minutes is counted, and told with the next one. All
//! events of a node share a budget, so that a store that is down for 200 pods does not cost the API server 200 writes
//! a minute. What finds no place is left out; the metrics have it all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::identity::Workload;
use crate::identity::key::hex;
use crate::kubernetes::{Api, ApiError, Patch};

/// How long a repetition of the same thing is only counted.
const REPEAT: Duration = Duration::from_secs(600);
/// Events at once, and how long until there may be one more.
const BUDGET: (u32, Duration) = (20, Duration::from_secs(6));
/// Events that wait for their turn.
const QUEUE: usize = 256;
/// Pods and reasons that are remembered.
const REMEMBERED: usize = 1024;
/// The longest message, in bytes: the API server takes 1,024.
const MESSAGE: usize = 1000;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The files could not be brought up to date; they stay as they were.
    RefreshFailing,
    /// They are up to date again.
    RefreshRecovered,
    /// The identity is in the last quarter of its life and could not be renewed.
    IdentityEnding,
    /// The pod asked to be told of changed files, and could not be.
    NotTold,
}

impl Reason {
    fn word(self) -> &'static str {
        match self {
            Self::RefreshFailing => "RefreshFailing",
            Self::RefreshRecovered => "RefreshRecovered",
            Self::IdentityEnding => "IdentityEnding",
            Self::NotTold => "ChangeNotTold",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::RefreshFailing | Self::IdentityEnding | Self::NotTold => "Warning",
            Self::RefreshRecovered => "Normal",
        }
    }
}

/// Something to be told of a pod.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) workload: Workload,
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

/// Takes events; never waits and never fails.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Option<mpsc::Sender<Note>>);

impl Recorder {
    /// One that tells nobody.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// One whose notes a test reads.
    #[cfg(test)]
    pub(crate) fn pair() -> (Self, mpsc::Receiver<Note>) {
        let (tell, told) = mpsc::channel(QUEUE);
        (Self(Some(tell)), told)
    }

    /// Tells `message` of a pod. It must hold no secret.
    pub fn tell(&self, workload: &Workload, reason: Reason, message: &str) {
        if let Some(queue) = &self.0 {
            let note = Note { workload: workload.clone(), reason, message: speakable(message) };
            if queue.try_send(note).is_err() {
                tracing::debug!(pod = %workload, "an event is left out: too many wait");
            }
        }
    }
}

/// Writes the events of one node.
#[derive(Debug)]
pub struct Events {
    api: Arc<Api>,
    node: String,
    queue: mpsc::Receiver<Note>,
}

/// What was told of one pod for one reason.
struct Told {
    /// The event's path, once there is one.
    path: Option<String>,
    count: u32,
    at: Instant,
}

impl Events {
    /// The writer, and what to tell it by.
    pub(crate) fn new(api: Arc<Api>, node: String) -> (Self, Recorder) {
        let (tell, queue) = mpsc::channel(QUEUE);
        (Self { api, node, queue }, Recorder(Some(tell)))
    }

    /// Writes until `shutdown`.
    pub async fn run(mut self, shutdown: &CancellationToken) {
        let mut told: HashMap<(String, Reason), Told> = HashMap::new();
        let mut budget = Budget::new(self.api.clock().now());
        let mut refused = false;
        loop {
            let note = tokio::select! {
                () = shutdown.cancelled() => return,
                note = self.queue.recv() => match note {
                    Some(note) => note,
                    None => return,
                },
            };
            let now = self.api.clock().now();
            if told.len() >= REMEMBERED {
                told.retain(|_, told| now.duration_since(told.at) < REPEAT);
            }
            let key = (note.workload.pod_uid.clone(), note.reason);
            let known = told.entry(key).or_insert(Told { path: None, count: 0, at: now });
            known.count = known.count.saturating_add(1);
            if known.count > 1 && now.duration_since(known.at) < REPEAT {
                continue;
            }
            if !budget.take(now) {
                tracing::debug!(pod = %note.workload, reason = note.reason.word(), "an event is left out: budget");
                continue;
            }
            known.at = now;
            match self.write(known, &note).await {
                Ok(()) => refused = false,
                Err(error) if error.is_forbidden() && !refused => {
                    refused = true;
                    tracing::warn!(%error, "no events: the agent's service account needs the rights to create and patch them");
                }
                Err(error) => tracing::debug!(%error, pod = %note.workload, "an event could not be written"),
            }
        }
    }

    async fn write(&self, told: &mut Told, note: &Note) -> Result<(), ApiError> {
        let now = timestamp(self.api.clock().wall());
        if let Some(path) = &told.path {
            let patch = json!({ "count": told.count, "lastTimestamp": now, "message": note.message });
            match self.api.patch::<Value>(path, Patch::Merge, &patch).await {
                Ok(_) => return Ok(()),
                // Events live an hour.
                Err(error) if error.is_missing() => told.path = None,
                Err(error) => return Err(error),
            }
        }
        let Workload { namespace, pod_name, pod_uid, .. } = &note.workload;
        let name = format!("{pod_name}.{}", hex(&rand::random::<[u8; 8]>()));
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": name, "namespace": namespace },
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod_name, "uid": pod_uid,
            },
            "reason": note.reason.word(),
            "message": note.message,
            "type": note.reason.kind(),
            "count": told.count,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": { "component": "countersign-agent", "host": self.node },
            "reportingComponent": "countersign.dev/agent",
            "reportingInstance": self.node,
        });
        let collection = format!("/api/v1/namespaces/{namespace}/events");
        self.api.create::<Value>(&collection, &event, None).await?;
        told.path = Some(format!("{collection}/{name}"));
        Ok(())
    }
}

/// A message that a terminal shows as it is, and that the API server takes.
fn speakable(message: &str) -> String {
    let mut text = String::new();
    for c in message.chars().filter(|c| !c.is_control()) {
        if text.len() + c.len_utf8() > MESSAGE {
            break;
        }
        text.push(c);
    }
    text
}

fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A bucket of tokens.
struct Budget {
    left: u32,
    /// When the next one comes.
    filled: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { left: BUDGET.0, filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.duration_since(self.filled).as_secs() / BUDGET.1.as_secs();
        let fresh = u32::try_from(since).unwrap_or(u32::MAX);
        if fresh > 0 {
            self.left = self.left.saturating_add(fresh).min(BUDGET.0);
            self.filled = now;
        }
        let any = self.left > 0;
        self.left = self.left.saturating_sub(1);
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::tests::cluster::{Cluster, clock, pass, workload};
    use crate::kubernetes::testing::ApiServer;

    const COLLECTION: &str = "/api/v1/namespaces/pay/events";

    struct Scene {
        server: ApiServer,
        recorder: Recorder,
        shutdown: CancellationToken,
        tasks: tokio::task::JoinSet<()>,
        _cluster: Cluster,
    }

    impl Scene {
        async fn new() -> Self {
            let (cluster, server) = (Cluster::new(), ApiServer::start().await);
            let api = server.api(cluster.dir.path(), clock());
            let (events, recorder) = Events::new(api, "node-1".to_owned());
            let shutdown = CancellationToken::new();
            let mut tasks = tokio::task::JoinSet::new();
            let ends = shutdown.clone();
            tasks.spawn(async move { events.run(&ends).await });
            Self { server, recorder, shutdown, tasks, _cluster: cluster }
        }

        fn tell(&self, pod: &str, reason: Reason) {
            self.recorder.tell(&workload(pod), reason, "store vault: no answer\u{1b}[2J");
        }

        /// Ends once everything told so far was looked at.
        async fn done(mut self) -> Vec<Value> {
            drop(self.recorder);
            self.tasks.join_next().await.unwrap().unwrap();
            self.shutdown.cancel();
            self.server.questions()
        }
    }

    #[tokio::test]
    async fn said_once_counted_and_told_again_later() {
        let scene = Scene::new().await;
        for _ in 0..3 {
            scene.tell("api", Reason::RefreshFailing);
        }
        scene.tell("api", Reason::RefreshRecovered);
        while scene.server.asked("POST", COLLECTION) < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        pass(REPEAT).await;
        scene.tell("api", Reason::RefreshFailing);
        let questions = scene.done().await;
        let bodies: Vec<_> = questions.iter().map(|question| &question["body"]).collect();
        assert_eq!(bodies.len(), 3, "{bodies:?}");
        let first = bodies[0];
        assert_eq!(first["reason"], "RefreshFailing");
        assert_eq!(first["type"], "Warning");
        assert_eq!(first["message"], "store vault: no answer[2J", "no control characters");
        assert_eq!(
            first["involvedObject"],
            json!({"apiVersion": "v1", "kind": "Pod", "namespace": "pay", "name": "api-0", "uid": "uid-api"})
        );
        assert_eq!(first["source"], json!({"component": "countersign-agent", "host": "node-1"}));
        assert_eq!(first["lastTimestamp"], "2027-01-15T08:00:00Z");
        assert_eq!(
            (&bodies[1]["type"], &bodies[1]["reason"]),
            (&json!("Normal"), &json!("RefreshRecovered"))
        );
        assert_eq!(questions[2]["head"]["method"], "PATCH");
        let path = questions[2]["head"]["path"].as_str().unwrap();
        assert!(path.starts_with("/api/v1/namespaces/pay/events/api-0."), "{path}");
        assert_eq!(
            (&bodies[2]["count"], &bodies[2]["lastTimestamp"]),
            (&json!(4), &json!("2027-01-15T08:10:00Z"))
        );
    }

    #[tokio::test]
    async fn an_event_that_has_ended_is_made_anew() {
        let scene = Scene::new().await;
        scene.tell("api", Reason::IdentityEnding);
        // One after the other: once the second is asked for, the first is done.
        scene.tell("web", Reason::IdentityEnding);
        while scene.server.asked("POST", COLLECTION) < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Its hour is over.
        let name = scene.server.questions()[0]["body"]["metadata"]["name"].as_str().unwrap().to_owned();
        scene.server.remove(&format!("{COLLECTION}/{name}"));
        pass(REPEAT).await;
        scene.tell("api", Reason::IdentityEnding);
        let questions = scene.done().await;
        let methods: Vec<_> = questions.iter().map(|question| question["head"]["method"].clone()).collect();
        assert_eq!(methods, ["POST", "POST", "PATCH", "POST"]);
    }

    #[tokio::test]
    async fn a_node_full_of_trouble_keeps_to_its_budget() {
        let scene = Scene::new().await;
        for pod in 0..200 {
            scene.tell(&format!("pod{pod}"), Reason::RefreshFailing);
        }
        let questions = scene.done().await.len();
        assert!((20..=25).contains(&questions), "{questions}");
    }

    #[tokio::test]
    async fn nobody_waits_for_an_api_server_that_refuses() {
        let scene = Scene::new().await;
        scene.server.will_refuse(403, "events is forbidden");
        scene.server.will_refuse(500, "down");
        for pod in ["a", "b", "c"] {
            scene.tell(pod, Reason::RefreshFailing);
        }
        assert_eq!(scene.done().await.len(), 3);
        Recorder::off().tell(&workload("api"), Reason::RefreshFailing, "told to nobody");
    }

    #[test]
    fn a_message_is_as_long_as_the_api_server_takes() {
        assert_eq!(speakable("a\u{1b}[2Jb\n"), "a[2Jb");
        assert_eq!(speakable(&"ü".repeat(MESSAGE)).len(), MESSAGE);
        assert_eq!(speakable(&format!("a{}", "ü".repeat(MESSAGE))).len(), MESSAGE - 1);
    }

    #[test]
    fn a_budget_is_filled_again() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        assert!((0..BUDGET.0).all(|_| budget.take(start)));
        assert!(!budget.take(start));
        assert!(!budget.take(start + BUDGET.1 / 2));
        assert!(budget.take(start + BUDGET.1));
        assert!(!budget.take(start + BUDGET.1));
        let later = start + 1000 * BUDGET.1;
        assert_eq!((0..100).filter(|_| budget.take(later)).count(), BUDGET.0 as usize);
    }
}
