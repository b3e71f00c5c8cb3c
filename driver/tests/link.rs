//! The link without any mount: what a new agent is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on says so by panicking"
)]

#[path = "kit/agent.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "each test crate uses its own part of the kit")]
mod agent;

use std::sync::Arc;
use std::time::Duration;

use agent::{Call, FakeAgent, Manner};
use countersign_driver::inflight::{Inflight, Work};
use countersign_driver::link::{self, Dialer, Link, link};
use countersign_driver::signals::Signals;
use countersign_driver::target::MountId;
use countersign_driver::volume::{Place, VolumeId};
use countersign_driver::volumes::{Known, Volumes};
use countersign_proto::agent::{PublishRequest, Token};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

fn id(name: &str) -> VolumeId {
    VolumeId::of(&Place::parse("", &format!("/pods/u/volumes/kubernetes.io~csi/{name}/mount")).unwrap())
}

fn mounted() -> Known {
    Known { mount: MountId(1), held: None, delivered: None }
}

struct Rig {
    directory: tempfile::TempDir,
    volumes: Arc<Volumes>,
    inflight: Arc<Inflight>,
    link: Arc<Link>,
    dialer: Option<Dialer>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Rig {
    fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap()).started()
    }

    fn within(directory: tempfile::TempDir) -> Self {
        let (volumes, inflight) = (Arc::new(Volumes::default()), Arc::new(Inflight::default()));
        let uid = rustix::process::geteuid().as_raw();
        let known = link::Known {
            volumes: Arc::clone(&volumes),
            inflight: Arc::clone(&inflight),
            signals: Arc::<Signals>::default(),
        };
        let (link, dialer) = link(directory.path().to_owned(), uid, known);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        Self { directory, volumes, inflight, link, dialer: Some(dialer), stop, tasks }
    }

    fn started(mut self) -> Self {
        self.tasks.spawn(self.dialer.take().unwrap().run(self.stop.clone()));
        self
    }

    fn agent(&self) -> FakeAgent {
        FakeAgent::start(self.directory.path())
    }

    fn deaf_agent(&self) -> FakeAgent {
        FakeAgent::start_with(self.directory.path(), Manner::Fill, true)
    }

    async fn connected(&self) {
        assert!(self.link.within(Duration::from_secs(20)).await.is_some(), "no agent");
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        assert!(self.link.now().is_none());
    }
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn list(ids: &[VolumeId]) -> Call {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    Call::Reconcile(ids.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn a_volume_in_the_making_is_on_the_list() {
    let rig = Rig::new();
    rig.volumes.remember(id("mounted"), mounted());
    let publishing = rig.inflight.start(id("publishing"), Work::Publish).unwrap();
    let republishing = rig.inflight.start(id("mounted"), Work::Publish).unwrap();
    let removing = rig.inflight.start(id("removed"), Work::Remove).unwrap();
    let agent = rig.agent();
    rig.connected().await;
    assert_eq!(agent.calls(), [list(&[id("mounted"), id("publishing")])]);
    drop((publishing, republishing, removing));
    rig.end().await;
}

#[tokio::test]
async fn nobody_gets_a_connection_before_the_agent_has_the_list() {
    let rig = Rig::new();
    rig.volumes.remember(id("mounted"), mounted());
    let agent = rig.deaf_agent();
    eventually(|| !agent.calls().is_empty()).await;
    assert!(rig.link.now().is_none());
    // A volume published now could only have gone to the agent behind its list: there is no way to.
    rig.volumes.remember(id("later"), mounted());
    assert!(rig.link.within(Duration::from_millis(50)).await.is_none());
    agent.deafen(false);
    rig.connected().await;
    assert_eq!(agent.calls(), [list(&[id("mounted")])]);
    rig.end().await;
}

#[tokio::test]
async fn what_ends_while_the_agent_reads_the_list_is_told_after_it() {
    let rig = Rig::new();
    rig.volumes.remember(id("ends"), mounted());
    rig.volumes.remember(id("stays"), mounted());
    // One fails to be published, one ends and says so, one ends unsaid.
    let failing = rig.inflight.start(id("fails"), Work::Publish).unwrap();
    let agent = rig.deaf_agent();
    eventually(|| !agent.calls().is_empty()).await;
    rig.volumes.forget(id("ends"));
    rig.link.forget(id("ends")).await;
    drop(failing);
    agent.deafen(false);
    rig.connected().await;
    eventually(|| agent.forgot(&id("ends").to_string()) && agent.forgot(&id("fails").to_string())).await;
    assert!(!agent.forgot(&id("stays").to_string()));
    assert_eq!(agent.calls().len(), 3, "nobody is told twice: {:?}", agent.calls());
    rig.end().await;
}

#[tokio::test]
async fn a_volume_that_is_wanted_again_is_not_ended_by_an_older_end() {
    let rig = Rig::new();
    rig.volumes.remember(id("back"), mounted());
    let agent = rig.deaf_agent();
    eventually(|| !agent.calls().is_empty()).await;
    rig.volumes.forget(id("back"));
    rig.link.forget(id("back")).await;
    let publishing = rig.inflight.start(id("back"), Work::Publish).unwrap();
    rig.link.wanted(id("back"));
    agent.deafen(false);
    rig.connected().await;
    rig.volumes.remember(id("back"), mounted());
    drop(publishing);
    // Another one that is owed shows that the round of ends has been made.
    rig.link.forget(id("other")).await;
    assert_eq!(agent.calls()[1..], [Call::Forget(id("other").to_string())]);
    rig.end().await;
}

/// Its volumes are handed to it anew, and it is told of every end by itself: the list would have been both.
#[tokio::test]
async fn an_agent_of_a_version_without_the_list_is_worked_with() {
    let rig = Rig::new();
    rig.volumes.remember(id("mounted"), Known { mount: MountId(1), held: Some(0), delivered: None });
    // Its end came while there was no agent.
    rig.link.forget(id("ended")).await;
    let agent = FakeAgent::start_as(rig.directory.path(), Manner::FillUnlisted);
    rig.connected().await;
    assert_eq!(agent.calls()[0], list(&[id("mounted")]));
    // No descriptor of this connection is believed to be there.
    assert_ne!(rig.volumes.known(id("mounted")).unwrap().held, Some(1));
    eventually(|| agent.forgot(&id("ended").to_string())).await;
    let connection = rig.link.now().unwrap();
    let root = std::fs::File::open(rig.directory.path()).unwrap();
    let key = connection.hand_over(root.into()).await.unwrap();
    let request = PublishRequest {
        volume_id: id("mounted").to_string(),
        tokens: vec![Token { audience: String::new(), token: "token-1".into() }],
        mailbox_key: key.to_vec(),
        ..PublishRequest::default()
    };
    connection.publish(request, Duration::from_secs(20)).await.unwrap();
    assert!(!agent.forgot(&id("mounted").to_string()));
    rig.end().await;
}

#[tokio::test]
async fn what_the_agent_says_it_holds_needs_no_descriptor() {
    let rig = Rig::new();
    let agent = rig.agent();
    rig.connected().await;
    // A directory stands for a volume.
    let connection = rig.link.now().unwrap();
    let root = std::fs::File::open(rig.directory.path()).unwrap();
    let key = connection.hand_over(root.into()).await.unwrap();
    let request = PublishRequest {
        volume_id: id("held").to_string(),
        tokens: vec![Token { audience: String::new(), token: "token-1".into() }],
        mailbox_key: key.to_vec(),
        ..PublishRequest::default()
    };
    connection.publish(request, Duration::from_secs(20)).await.unwrap();
    assert_eq!(std::fs::read_to_string(rig.directory.path().join("password")).unwrap(), "token-1");

    // Another driver process, the same agent.
    rig.stop.cancel();
    rig.tasks.close();
    rig.tasks.wait().await;
    let Rig { directory, .. } = rig;
    let rig = Rig::within(directory);
    rig.volumes.remember(id("held"), mounted());
    rig.volumes.remember(id("not-held"), mounted());
    drop(agent.take_calls());
    let rig = rig.started();
    rig.connected().await;
    assert_eq!(agent.calls(), [list(&[id("held"), id("not-held")])]);
    assert_eq!(rig.volumes.known(id("held")).unwrap().held, Some(1));
    assert_eq!(rig.volumes.known(id("not-held")).unwrap().held, None);
    rig.end().await;
}
