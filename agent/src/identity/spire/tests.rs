pub(super) mod authority;
mod delegated;
mod fake;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use countersign_proto::broker::{Jwtsvid, SubscribeToX509svidResponse};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::Status;

use self::authority::{Authority, Signed};
use self::fake::{Fake, Word, broker_message, workload_message};
use super::*;
use crate::identity::X509Svid;

const HOUR: Duration = Duration::from_secs(3600);
const MOMENT: Duration = Duration::from_millis(20);
const AGENT: &str = "spiffe://example.org/spire/agent/k8s_psat/c/n1";
const US: &str = "spiffe://example.org/countersign/agent";

/// A SPIRE agent, and us beside it.
struct Scene {
    authority: Authority,
    fake: Fake,
    spire: Arc<Spire>,
    shutdown: CancellationToken,
    life: JoinSet<()>,
    clock: Clock,
    directory: TempDir,
}

impl Scene {
    /// Everything set up, and an SVID for us.
    fn new() -> Self {
        Self::with(AGENT, None)
    }

    fn with(agent: &str, hint: Option<&str>) -> Self {
        let clock = Clock::pinned(Clock::system().wall());
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("example.org");
        let fake = Fake::start(directory.path(), &authority.svid(agent, clock.wall(), 24 * HOUR));
        let socket = |name: &str| -> Socket {
            let path: PathBuf = directory.path().join(name);
            path.to_str().unwrap().parse().unwrap()
        };
        let way = WayConfig::Broker(BrokerConfig {
            workload_socket: socket("api.sock"),
            broker_socket: socket("broker.sock"),
        });
        let spire = Arc::new(Spire::open(Config {
            way,
            trust_domain: "example.org".parse().unwrap(),
            hint: hint.map(ToOwned::to_owned),
            clock,
        }));
        let shutdown = CancellationToken::new();
        let mut life = JoinSet::new();
        let (running, until) = (Arc::clone(&spire), shutdown.clone());
        life.spawn(async move { running.run(&until).await });
        let scene = Self { authority, fake, spire, shutdown, life, clock, directory };
        scene.give_us(24 * HOUR);
        scene.fake.script.keys.send_replace(scene.authority.jwt_bundles());
        scene
    }

    fn now(&self) -> SystemTime {
        self.clock.wall()
    }

    fn give_us(&self, life: Duration) {
        let ours = self.authority.svid(US, self.now(), life);
        let message = Ok(workload_message(&[&ours]));
        *self.fake.script.own.lock().unwrap() = Some(watch::channel(message).0);
    }

    fn signed(&self, path: &str) -> Signed {
        self.authority.svid(&format!("spiffe://example.org/{path}"), self.now(), HOUR)
    }

    /// What is said of the pod with this uid from now on.
    fn says(&self, uid: &str, svids: &[&Signed]) {
        let message = broker_message(svids);
        let mut pods = self.fake.script.pods.lock().unwrap();
        if let Some(Word::Says(sender)) = pods.get(uid) {
            sender.send_replace(message);
        } else {
            pods.insert(uid.to_owned(), Word::Says(watch::channel(message).0));
        }
    }

    fn refuses(&self, uid: &str, status: Status) {
        self.fake.script.pods.lock().unwrap().insert(uid.to_owned(), Word::Refuses(status));
    }

    async fn svid(&self, pod: &Workload) -> Result<Arc<X509Svid>, Error> {
        self.spire.x509(pod, None).await.map(|identity| identity.x509)
    }

    async fn problem(&self, pod: &Workload) -> String {
        self.svid(pod).await.unwrap_err().to_string()
    }

    async fn pushed(&self) -> Push {
        timeout(HOUR, self.spire.changed()).await.unwrap()
    }

    fn open(&self) -> usize {
        self.fake.script.open.load(Ordering::SeqCst)
    }

    fn subscribed(&self) -> usize {
        self.fake.script.subscribed.load(Ordering::SeqCst)
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if done(self) {
                return;
            }
            sleep(MOMENT).await;
        }
        panic!("never {what}");
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.life.join_next().await {
            ended.unwrap();
        }
        self.fake.stop().await;
    }
}

fn pod(uid: &str) -> Workload {
    Workload {
        namespace: "pay".into(),
        pod_name: "api-0".into(),
        pod_uid: uid.into(),
        service_account: "api".into(),
        hint: None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_pods_svid_comes_by_its_reference_over_one_stream() {
    let scene = Scene::new();
    let signed = scene.signed("ns/pay/sa/api");
    scene.says("u1", &[&signed]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let identity = scene.spire.x509(&pod("u1"), None).await.unwrap();
    assert_eq!(identity.spiffe_id.as_str(), signed.id);
    assert_eq!(identity.x509.roots, std::slice::from_ref(&scene.authority.root_der));
    // Three quarters of an hour and ten seconds after its beginning, ten seconds ago; certificates count seconds.
    let left = identity.x509.not_after.duration_since(identity.renew_at).unwrap();
    assert!((902..=903).contains(&left.as_secs()), "{left:?}");
    let again = scene.svid(&pod("u1")).await.unwrap();
    assert!(Arc::ptr_eq(&again, &identity.x509));
    assert_eq!((scene.subscribed(), scene.open()), (1, 1));
    let asked = scene.fake.script.asked.lock().unwrap().clone();
    let kind = asked[0].r#type.clone().unwrap();
    let key = asked[0].key.clone().unwrap();
    assert_eq!((kind.plural.as_str(), kind.group.as_str()), ("pods", "core"));
    assert_eq!((key.namespace.as_str(), key.name.as_str(), asked[0].uid.as_str()), ("pay", "api-0", "u1"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_renewed_svid_is_pushed_and_then_used() {
    let scene = Scene::new();
    scene.says("u1", &[&scene.signed("a")]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let first = scene.svid(&pod("u1")).await.unwrap();
    assert!(Arc::ptr_eq(&scene.pushed().await.svid.unwrap(), &first));
    scene.says("u1", &[&scene.signed("a")]);
    let push = scene.pushed().await;
    let second = scene.svid(&pod("u1")).await.unwrap();
    assert_eq!(push.workload, pod("u1"));
    assert!(Arc::ptr_eq(&push.svid.unwrap(), &second) && second.key != first.key);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_may_be_unseen_for_a_moment() {
    let scene = Scene::new();
    let _volume = scene.spire.subscribe(&pod("u1"));
    scene.until("asked thrice", |scene| scene.subscribed() >= 3).await;
    scene.says("u1", &[&scene.signed("a")]);
    scene.svid(&pod("u1")).await.unwrap();
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_stays_unseen_is_told_so_and_asked_for_ever_more_rarely() {
    let scene = Scene::new();
    let _volume = scene.spire.subscribe(&pod("u1"));
    let problem = scene.problem(&pod("u1")).await;
    assert!(
        problem.starts_with(
            "identity: SPIRE does not see pod pay/api-0 on this node: pod pay/api-0 not found on agent node; "
        ),
        "{problem}"
    );
    let before = scene.subscribed();
    assert!((22..=60).contains(&before), "{before} in ten seconds");
    sleep(Duration::from_secs(600)).await;
    let more = scene.subscribed() - before;
    assert!((50..=130).contains(&more), "{more} in ten minutes");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_an_entry_a_pod_waits_and_starts_with_the_push() {
    let scene = Scene::new();
    scene.says("u1", &[]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let (began, waiting) = (scene.clock.now(), pod("u1"));
    let late = async {
        sleep(Duration::from_secs(40)).await;
        // SPIRE sends one more empty message just before the full one.
        scene.says("u1", &[]);
        scene.says("u1", &[&scene.signed("a")]);
    };
    let (svid, ()) = tokio::join!(scene.svid(&waiting), late);
    svid.unwrap();
    assert_eq!((scene.clock.now() - began).as_secs(), 40);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_an_entry_for_long_the_selectors_are_named() {
    let scene = Scene::new();
    scene.says("u1", &[]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let problem = scene.problem(&pod("u1")).await;
    assert_eq!(
        problem,
        "identity: SPIRE has no registration entry for pod pay/api-0; its selectors include k8s:ns:pay, k8s:sa:api and \
         k8s:pod-uid:u1, and none of a container or an image before it runs; the entry's parent must be this node's SPIRE agent"
    );
    // The next try is not kept waiting: the pod has had its time.
    let began = scene.clock.now();
    scene.problem(&pod("u1")).await;
    assert_eq!(scene.clock.now(), began);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_what_would_allow_it_and_is_one_pods_own() {
    let scene = Scene::new();
    scene.says("good", &[&scene.signed("a")]);
    for (answer, remedy) in [
        (
            Status::permission_denied(
                "Kubernetes authorizer does not allow the broker to use impersonate-via-spire for the referenced object",
            ),
            "let `User spiffe://example.org/countersign/agent` use the verb impersonate-via-spire on pods in namespace pay",
        ),
        (
            Status::permission_denied("broker \"x\" is not allowed to use reference type \"y\""),
            "allowed_reference_types of this broker in the SPIRE agent's broker block",
        ),
        (
            Status::permission_denied("broker \"x\" is not configured"),
            "add spiffe://example.org/countersign/agent to experimental.broker.brokers of the SPIRE agent's k8s workload",
        ),
        (
            Status::permission_denied("because"),
            "see whether SPIRE's broker block and the RBAC of namespace pay name",
        ),
    ] {
        scene.refuses("u1", answer);
        // Each publish begins anew.
        let volume = scene.spire.subscribe(&pod("u1"));
        let error = scene.svid(&pod("u1")).await.unwrap_err();
        assert!(matches!(&error, Error::IdentityRefused { problem } if problem.contains(remedy)), "{error}");
        drop(volume);
        scene.until("ended", |scene| scene.spire.pods().values().all(|pod| pod.strong_count() == 0)).await;
    }
    scene.svid(&pod("good")).await.unwrap();
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_cannot_attest_pods_says_what_it_lacks() {
    let scene = Scene::new();
    for (uid, answer, remedy) in [
        (
            "u1",
            Status::unimplemented("no workload attestor handled reference"),
            "needs SPIRE 1.15.2 or newer",
        ),
        (
            "u2",
            Status::internal("broker configuration missing"),
            "an experimental.broker block that names spiffe://",
        ),
        (
            "u3",
            Status::internal("unable to perform request"),
            "SPIRE answers Internal: unable to perform request",
        ),
        (
            "u4",
            Status::internal(
                "unable to check Kubernetes authorization for broker: subjectaccessreviews is forbidden",
            ),
            "let the SPIRE agent's service account create subjectaccessreviews.authorization.k8s.io",
        ),
    ] {
        scene.refuses(uid, answer);
        let _volume = scene.spire.subscribe(&pod(uid));
        let problem = scene.problem(&pod(uid)).await;
        assert!(problem.contains(remedy), "{problem}");
    }
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_set_is_a_withdrawal_only_when_it_holds() {
    let scene = Scene::new();
    let signed = scene.signed("a");
    scene.says("u1", &[&signed]);
    scene.says("u2", &[&scene.signed("b")]);
    let _volumes = [scene.spire.subscribe(&pod("u1")), scene.spire.subscribe(&pod("u2"))];
    let held = scene.svid(&pod("u1")).await.unwrap();
    scene.svid(&pod("u2")).await.unwrap();
    let _ = (scene.pushed().await, scene.pushed().await);
    scene.says("u1", &[]);
    sleep(Duration::from_secs(14)).await;
    assert!(Arc::ptr_eq(&scene.svid(&pod("u1")).await.unwrap(), &held));
    scene.says("u1", &[&signed]);
    sleep(Duration::from_secs(60)).await;
    assert!(Arc::ptr_eq(&scene.svid(&pod("u1")).await.unwrap(), &held));
    scene.says("u1", &[]);
    let push = scene.pushed().await;
    assert!(push.workload == pod("u1") && push.svid.is_none());
    let error = scene.svid(&pod("u1")).await.unwrap_err();
    assert!(
        matches!(&error, Error::IdentityWithdrawn { problem } if problem.contains("no registration entry")),
        "{error}"
    );
    scene.svid(&pod("u2")).await.unwrap();
    // And it is not for ever.
    scene.says("u1", &[&signed]);
    assert!(scene.pushed().await.svid.is_some());
    scene.svid(&pod("u1")).await.unwrap();
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_changes_nothing_that_it_does_not_say_anew() {
    let mut scene = Scene::new();
    let signed = scene.signed("a");
    scene.says("u1", &[&signed]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let held = scene.svid(&pod("u1")).await.unwrap();
    scene.pushed().await;
    scene.fake.stop().await;
    sleep(Duration::from_secs(30)).await;
    assert!(Arc::ptr_eq(&scene.svid(&pod("u1")).await.unwrap(), &held));
    // Attested anew, it has nothing to say at first.
    scene.says("u1", &[]);
    scene.fake.serve(&scene.authority.svid(AGENT, scene.now(), 24 * HOUR));
    scene.until("subscribed again", |scene| scene.subscribed() >= 2).await;
    sleep(Duration::from_secs(5)).await;
    scene.says("u1", &[&signed]);
    sleep(Duration::from_secs(60)).await;
    assert!(Arc::ptr_eq(&scene.svid(&pod("u1")).await.unwrap(), &held));
    scene.says("u1", &[&scene.signed("a")]);
    assert!(!Arc::ptr_eq(&scene.pushed().await.svid.unwrap(), &held));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn two_hundred_and_fifty_pods_come_back_once_each_and_not_all_at_once() {
    const PODS: usize = 250;
    let mut scene = Scene::new();
    let agent = scene.authority.svid(AGENT, scene.now(), 24 * HOUR);
    let mut streams = Vec::new();
    for n in 0..PODS {
        let uid = format!("uid-{n}");
        scene.says(&uid, &[&scene.signed(&format!("app-{}", n % 5))]);
        streams.push(scene.spire.subscribe(&pod(&uid)));
    }
    for _ in 0..PODS {
        assert!(scene.pushed().await.svid.is_some());
    }
    assert_eq!((scene.open(), scene.subscribed()), (PODS, PODS));
    let mut held = Vec::new();
    for n in 0..PODS {
        held.push(scene.svid(&pod(&format!("uid-{n}"))).await.unwrap());
    }
    scene.fake.stop().await;
    // Long enough that every pause has grown to its longest.
    sleep(Duration::from_secs(120)).await;
    let before = scene.spire.office.clock.now();
    scene.fake.serve(&agent);
    let mut when = Vec::new();
    while scene.subscribed() < 2 * PODS {
        let seen = scene.subscribed();
        sleep(Duration::from_millis(100)).await;
        when.push((scene.subscribed() - seen, scene.spire.office.clock.now() - before));
    }
    scene.until("all streams are open", |scene| scene.open() == PODS).await;
    // Nobody asked twice, and no tenth of a second saw a fifth of them.
    assert_eq!(scene.subscribed(), 2 * PODS);
    let most = when.iter().map(|(asked, _)| *asked).max().unwrap();
    assert!(most < PODS / 5, "{most} at once: {when:?}");
    // What came again is what there was: nobody is woken.
    assert!(timeout(Duration::from_secs(60), scene.spire.changed()).await.is_err());
    for (n, held) in held.iter().enumerate() {
        let now = scene.svid(&pod(&format!("uid-{n}"))).await.unwrap();
        assert!(Arc::ptr_eq(held, &now), "pod {n} was given another");
    }
    drop(streams);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn rights_are_looked_at_again_and_their_loss_is_a_withdrawal() {
    let scene = Scene::new();
    scene.says("u1", &[&scene.signed("a")]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    scene.svid(&pod("u1")).await.unwrap();
    scene.pushed().await;
    // SPIRE never ends the stream that is open.
    scene.refuses("u1", Status::permission_denied("Kubernetes authorizer does not allow it"));
    let push = scene.pushed().await;
    assert!(push.svid.is_none());
    let error = scene.svid(&pod("u1")).await.unwrap_err();
    assert!(
        matches!(&error, Error::IdentityWithdrawn { problem } if problem.contains("impersonate-via-spire")),
        "{error}"
    );
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_last_volume_and_another_pod_of_the_name_has_its_own() {
    let scene = Scene::new();
    let (old, new) = (scene.signed("old"), scene.signed("new"));
    scene.says("u1", &[&old]);
    let volumes = [scene.spire.subscribe(&pod("u1")), scene.spire.subscribe(&pod("u1"))];
    scene.svid(&pod("u1")).await.unwrap();
    assert_eq!(scene.open(), 1);
    // SPIRE keeps a deleted pod's stream open, and goes on sending.
    scene.says("u2", &[&new]);
    let _next = scene.spire.subscribe(&pod("u2"));
    assert_eq!(scene.svid(&pod("u2")).await.unwrap().spiffe_id.as_str(), new.id);
    let [one, two] = volumes;
    drop(one);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.open(), 2);
    drop(two);
    scene.says("u1", &[&old]);
    scene.until("ended", |scene| scene.open() == 1).await;
    assert_eq!(scene.svid(&pod("u2")).await.unwrap().spiffe_id.as_str(), new.id);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_breaks_a_rule_is_not_used_and_what_was_good_stays() {
    let scene = Scene::new();
    let stranger = Authority::new("other.example").svid("spiffe://other.example/x", scene.now(), HOUR);
    scene.says("u1", &[&stranger]);
    let volume = scene.spire.subscribe(&pod("u1"));
    let problem = scene.problem(&pod("u1")).await;
    assert!(problem.contains("it is of trust domain other.example instead of example.org"), "{problem}");
    drop(volume);
    scene.says("u1", &[&scene.signed("a")]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let held = scene.svid(&pod("u1")).await.unwrap();
    let expired = scene.authority.svid("spiffe://example.org/a", scene.now() - 2 * HOUR, HOUR);
    scene.says("u1", &[&expired]);
    sleep(Duration::from_secs(60)).await;
    assert!(Arc::ptr_eq(&scene.svid(&pod("u1")).await.unwrap(), &held));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_svid_in_its_last_quarter_is_trouble_and_an_ended_one_is_none() {
    let mut scene = Scene::new();
    scene.says("u1", &[&scene.signed("a")]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let identity = scene.spire.x509(&pod("u1"), None).await.unwrap();
    scene.fake.stop().await;
    sleep(Duration::from_secs(2640)).await;
    scene.spire.x509(&pod("u1"), Some(&identity)).await.unwrap();
    sleep(Duration::from_secs(120)).await;
    let problem = scene.spire.x509(&pod("u1"), Some(&identity)).await.unwrap_err().to_string();
    assert!(
        problem.contains("spiffe://example.org/a of pod pay/api-0 ends in 8")
            && problem.contains("SPIRE has not renewed it: ")
            && problem.contains("nobody listens"),
        "{problem}"
    );
    // A volume that comes now has what there is.
    scene.spire.x509(&pod("u1"), None).await.unwrap();
    sleep(Duration::from_secs(900)).await;
    assert!(scene.problem(&pod("u1")).await.contains("nobody listens"));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn only_a_spire_agent_of_our_trust_domain_is_talked_to() {
    let scene = Scene::with("spiffe://example.org/ns/evil/sa/agent", None);
    scene.says("u1", &[&scene.signed("a")]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let problem = scene.problem(&pod("u1")).await;
    assert!(
        problem.contains("the server is spiffe://example.org/ns/evil/sa/agent, which is no SPIRE agent"),
        "{problem}"
    );
    assert_eq!(scene.subscribed(), 0);
    scene.end().await;

    let mut scene = Scene::new();
    scene.says("u1", &[&scene.signed("a")]);
    scene.fake.stop().await;
    let impostor = Authority::new("example.org").svid(AGENT, scene.now(), HOUR);
    scene.fake.serve(&impostor);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let problem = scene.problem(&pod("u1")).await;
    assert!(problem.contains("its chain does not lead to a root of the bundle"), "{problem}");
    assert_eq!(scene.subscribed(), 0);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_an_svid_of_our_own_it_is_said_what_is_missing() {
    let scene = Scene::new();
    *scene.fake.script.own.lock().unwrap() = None;
    scene.says("u1", &[&scene.signed("a")]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let problem = scene.problem(&pod("u1")).await;
    assert!(
        problem.contains("this agent has no SVID of its own yet")
            && problem.contains("SPIRE has no registration entry for this agent itself (no identity issued)"),
        "{problem}"
    );
    scene.give_us(HOUR);
    scene.until("there", |scene| scene.subscribed() == 1).await;
    scene.svid(&pod("u1")).await.unwrap();
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_outlives_our_own_svid_and_a_new_one_says_that_it_has_ended() {
    let mut scene = Scene::new();
    scene.give_us(Duration::from_secs(120));
    scene.says("u1", &[&scene.signed("a")]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    scene.svid(&pod("u1")).await.unwrap();
    sleep(Duration::from_secs(300)).await;
    scene.pushed().await;
    scene.says("u1", &[&scene.signed("a")]);
    assert!(scene.pushed().await.svid.is_some());
    let agent = scene.authority.svid(AGENT, scene.now(), 24 * HOUR);
    scene.fake.stop().await;
    *scene.fake.script.own.lock().unwrap() = None;
    scene.fake.serve(&agent);
    scene.says("u2", &[&scene.signed("b")]);
    let _other = scene.spire.subscribe(&pod("u2"));
    let problem = scene.problem(&pod("u2")).await;
    assert!(problem.contains("this agent's own SVID has ended"), "{problem}");
    scene.svid(&pod("u1")).await.unwrap();
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_socket_says_where_it_should_be() {
    let mut scene = Scene::new();
    scene.until("known to SPIRE", |scene| scene.spire.office.api.us().is_some()).await;
    scene.fake.stop().await;
    std::fs::remove_file(scene.directory.path().join("broker.sock")).unwrap();
    let _volume = scene.spire.subscribe(&pod("u1"));
    let problem = scene.problem(&pod("u1")).await;
    assert!(
        problem.contains("broker.sock: No such file") && problem.contains("is its directory mounted here?"),
        "{problem}"
    );
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_jwt_svid_is_the_identitys_own_and_for_the_one_audience() {
    let scene = Scene::new();
    let (signed, expires) = (scene.signed("a"), scene.now() + Duration::from_secs(300));
    scene.says("u1", &[&signed]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let identity = scene.spire.x509(&pod("u1"), None).await.unwrap();
    let minted =
        |id: &str, token: String| Jwtsvid { spiffe_id: id.to_owned(), svid: token, hint: String::new() };
    let answers = |answer| *scene.fake.script.jwts.lock().unwrap() = Some(answer);
    let other = "spiffe://example.org/b";
    let token = scene.authority.jwt(&signed.id, "vault", expires);
    answers(Ok(vec![
        minted(other, scene.authority.jwt(other, "vault", expires)),
        minted(&signed.id, token.clone()),
    ]));
    let svid = scene.spire.jwt(&pod("u1"), &identity, "vault").await.unwrap();
    assert_eq!(svid.token.expose(), token.as_bytes());
    assert!(svid.renew_at < svid.expires && svid.expires <= expires);

    for (audience, answer, part) in [
        ("", Ok(Vec::new()), "needs an audience"),
        (
            "vault",
            Ok(vec![minted(other, scene.authority.jwt(other, "vault", expires))]),
            "SPIRE sent no JWT-SVID of pod pay/api-0 for spiffe://example.org/a",
        ),
        (
            "vault",
            Ok(vec![minted(&signed.id, scene.authority.jwt(other, "vault", expires))]),
            "its subject is not spiffe://example.org/a",
        ),
        (
            "other",
            Ok(vec![minted(&signed.id, scene.authority.jwt(&signed.id, "vault", expires))]),
            "its audience is not exactly",
        ),
        (
            "vault",
            Ok(vec![minted(&signed.id, scene.authority.jwt(&signed.id, "vault", scene.now() - HOUR))]),
            "past it",
        ),
        (
            "vault",
            Ok(vec![minted(&signed.id, Authority::new("example.org").jwt(&signed.id, "vault", expires))]),
            "no key of trust domain example.org's bundle has its kid",
        ),
        (
            "vault",
            Err(Status::permission_denied("no identity issued")),
            "no registration entry for pod pay/api-0",
        ),
        (
            "vault",
            Err(Status::unavailable("could not fetch JWT-SVID: x")),
            "SPIRE answers Unavailable: could not fetch",
        ),
    ] {
        answers(answer);
        let problem = scene.spire.jwt(&pod("u1"), &identity, audience).await.unwrap_err().to_string();
        assert!(problem.contains(part), "{problem}");
    }
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_comes_late_is_waited_for_and_one_that_never_comes_is_not() {
    let scene = Scene::new();
    let (signed, expires) = (scene.signed("a"), scene.now() + HOUR);
    scene.says("u1", &[&signed]);
    let _volume = scene.spire.subscribe(&pod("u1"));
    let identity = scene.spire.x509(&pod("u1"), None).await.unwrap();
    let next = Authority::new("example.org");
    let token = next.jwt(&signed.id, "vault", expires);
    let minted = Jwtsvid { spiffe_id: signed.id.clone(), svid: token.clone(), hint: String::new() };
    *scene.fake.script.jwts.lock().unwrap() = Some(Ok(vec![minted]));
    let problem = scene.spire.jwt(&pod("u1"), &identity, "vault").await.unwrap_err();
    assert!(matches!(problem, Error::IdentityUnavailable { .. }), "{problem}");
    let pod = pod("u1");
    let late = async {
        sleep(Duration::from_secs(1)).await;
        scene.fake.script.keys.send_replace(next.jwt_bundles());
    };
    let (asked, ()) = tokio::join!(scene.spire.jwt(&pod, &identity, "vault"), late);
    assert_eq!(asked.unwrap().token.expose(), token.as_bytes());
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_hint_chooses_among_several_identities() {
    let scene = Scene::with(AGENT, Some("external"));
    let (inner, outer) = (scene.signed("inner"), scene.signed("outer"));
    let mut message: SubscribeToX509svidResponse = broker_message(&[&inner, &outer]);
    message.svids[0].hint = "internal".into();
    message.svids[1].hint = "external".into();
    let word = Word::Says(watch::channel(message).0);
    scene.fake.script.pods.lock().unwrap().insert("u1".into(), word);
    let _volume = scene.spire.subscribe(&pod("u1"));
    assert_eq!(scene.svid(&pod("u1")).await.unwrap().spiffe_id.as_str(), outer.id);
    // A volume may be for another one: it is followed by itself.
    let wanted = Workload { hint: Some("internal".into()), ..pod("u1") };
    let _third = scene.spire.subscribe(&wanted);
    assert_eq!(scene.svid(&wanted).await.unwrap().spiffe_id.as_str(), inner.id);
    assert_eq!(scene.svid(&pod("u1")).await.unwrap().spiffe_id.as_str(), outer.id);
    scene.says("u2", &[&inner]);
    let _other = scene.spire.subscribe(&pod("u2"));
    let problem = scene.problem(&pod("u2")).await;
    assert!(problem.contains(r#"none of the SVIDs has the hint "external""#), "{problem}");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_svid_is_withdrawn_though_another_of_the_pod_is_left() {
    let scene = Scene::new();
    let (inner, outer) = (scene.signed("inner"), scene.signed("outer"));
    let says = |svids: &[(&Signed, &str)]| {
        let signed: Vec<_> = svids.iter().map(|(signed, _)| *signed).collect();
        let mut message: SubscribeToX509svidResponse = broker_message(&signed);
        for (svid, (_, hint)) in message.svids.iter_mut().zip(svids) {
            svid.hint = (*hint).to_owned();
        }
        let mut pods = scene.fake.script.pods.lock().unwrap();
        match pods.get("u1") {
            Some(Word::Says(sender)) => drop(sender.send_replace(message)),
            _ => drop(pods.insert("u1".into(), Word::Says(watch::channel(message).0))),
        }
    };
    let (both, one) = ([(&inner, "internal"), (&outer, "external")], [(&inner, "internal")]);
    says(&one);
    let external = pod("u1").hinted(&"external".into());
    let _volumes = [scene.spire.subscribe(&pod("u1")), scene.spire.subscribe(&external)];
    scene.svid(&pod("u1")).await.unwrap();
    assert!(scene.pushed().await.workload == pod("u1"));
    // Whoever waits for it starts when it comes.
    let late = async {
        sleep(Duration::from_secs(30)).await;
        says(&both);
    };
    let (held, ()) = tokio::join!(scene.svid(&external), late);
    let held = held.unwrap();
    assert_eq!(held.spiffe_id.as_str(), outer.id);
    assert!(scene.pushed().await.workload == external);
    says(&one);
    sleep(Duration::from_secs(14)).await;
    assert!(Arc::ptr_eq(&scene.svid(&external).await.unwrap(), &held));
    let push = scene.pushed().await;
    assert!(push.workload == external && push.svid.is_none());
    let error = scene.svid(&external).await.unwrap_err();
    assert!(
        matches!(&error, Error::IdentityWithdrawn { problem } if problem.contains(r#"the hint "external""#)),
        "{error}"
    );
    assert_eq!(scene.svid(&pod("u1")).await.unwrap().spiffe_id.as_str(), inner.id);
    scene.end().await;
}

#[test]
fn a_server_that_hangs_up_may_not_want_us() {
    for words in ["Broken pipe (os error 32)", "received fatal alert: BadCertificate"] {
        let status = Status::from_error(Box::new(std::io::Error::other(words)));
        let problem = answer::of_broker(&status, &pod("u1"), answer::Us(Some(US))).error().to_string();
        assert!(problem.contains("add spiffe://example.org/countersign/agent to brokers"), "{problem}");
    }
}
