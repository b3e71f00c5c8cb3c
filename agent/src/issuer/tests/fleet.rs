//! Several replicas of the issuer, the bundle they publish together, and the agent that follows them.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, NOW, Running, clock, pass, workload, write};
use super::life::get;
use super::relay::Relay;
use crate::Error;
use crate::clock::Clock;
use crate::identity::embedded::{self, BundleSource};
use crate::identity::{Embedded, Identity, Standing};
use crate::issuer::config::PublicationConfig;
use crate::issuer::{Config, ReviewerConfig};
use crate::kubernetes::testing::{ApiServer, Reply};
use crate::kubernetes::{ObjectName, Resource};

const PATH: &str = "/api/v1/namespaces/countersign-system/configmaps/countersign-bundle";

fn object() -> ObjectName {
    ObjectName::namespaced(Resource::ConfigMaps, "countersign-system/countersign-bundle").unwrap()
}

/// A cluster with an API server, and replicas that publish through it.
struct Fleet {
    cluster: Cluster,
    api: ApiServer,
    clock: Clock,
}

/// An agent's client, with its upkeep running.
struct Agent {
    client: Arc<Embedded>,
    shutdown: CancellationToken,
    tasks: tokio::task::JoinSet<()>,
}

impl Fleet {
    async fn new() -> Self {
        Self { cluster: Cluster::new(), api: ApiServer::start().await, clock: clock() }
    }

    fn config(&self, replica: &str) -> Config {
        let mut config = self.cluster.config();
        config.clock = self.clock;
        config.bundle_out = None;
        config.publication = Some(PublicationConfig {
            server: self.api.server(self.cluster.dir.path()),
            object: object(),
            replica: replica.to_owned(),
            grace: Duration::ZERO,
        });
        config
    }

    async fn replica(&self, name: &str) -> Running {
        let running = Running::start(self.config(name)).await;
        ready(&running).await;
        running
    }

    /// An agent on node-1 that reaches these replicas and follows the published bundle.
    fn agent(&self, replicas: &[SocketAddr]) -> Agent {
        let agent_token = self.cluster.path("agent-token-node-1");
        write(&agent_token, self.cluster.agent_token("node-1").expose());
        let addresses: Vec<_> = replicas.iter().map(ToString::to_string).collect();
        let client = Arc::new(Embedded::new(embedded::Config {
            address: addresses.join(","),
            bundle: BundleSource::ConfigMap(self.api.server(self.cluster.dir.path()), object()),
            agent_token,
            audience: "countersign".to_owned(),
            trust_domain: "example.org".parse().unwrap(),
            clock: self.clock,
        }));
        let shutdown = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        let (running, ends) = (Arc::clone(&client), shutdown.clone());
        tasks.spawn(async move { running.run(&ends).await });
        Agent { client, shutdown, tasks }
    }

    /// How many entries are good for another hour and more.
    fn lasting(&self) -> usize {
        let soon = self.clock.wall() + Duration::from_secs(3600);
        let map = self.api.object(PATH).unwrap();
        let until = |key: &String| {
            let entry: Value = serde_json::from_str(map["data"][key].as_str().unwrap()).unwrap();
            humantime::parse_rfc3339(entry["until"].as_str().unwrap()).unwrap()
        };
        entries(Some(&map)).iter().filter(|key| until(key) > soon).count()
    }

    /// How many roots are published.
    fn roots(&self) -> usize {
        roots(self.api.object(PATH).as_ref())
    }
}

impl Agent {
    async fn first(&self, fleet: &Fleet, name: &str) -> Result<Identity, Error> {
        self.client.x509(&workload(name), &fleet.cluster.tokens(name), None).await
    }

    /// By key alone.
    async fn renew(&self, name: &str, identity: &Identity) -> Result<Identity, Error> {
        self.client.x509(&workload(name), &[], Some(identity)).await
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap();
    }
}

fn roots(map: Option<&Value>) -> usize {
    map.and_then(|map| map["data"]["bundle.pem"].as_str()).map_or(0, |pem| pem.matches("BEGIN").count())
}

/// The keys of the replicas' entries.
fn entries(map: Option<&Value>) -> HashSet<String> {
    let keys = map.and_then(|map| map["data"].as_object()).into_iter().flat_map(|data| data.keys());
    keys.filter(|key| key.starts_with("issuer-")).cloned().collect()
}

async fn ready(running: &Running) {
    while get(running, "/readyz").await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn replicas_publish_one_bundle_and_honour_each_others_tickets() {
    let fleet = Fleet::new().await;
    let (one, two) = tokio::join!(fleet.replica("one"), fleet.replica("two"));
    // Both at once: neither's entry was lost to the race.
    assert_eq!(fleet.roots(), 2);
    let map = fleet.api.object(PATH).unwrap();
    let published = map["data"]["bundle.json"].as_str().unwrap();
    for replica in [&one, &two] {
        while get(replica, "/bundle").await.1 != published {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let keys: Value = serde_json::from_str(&get(replica, "/keys").await.1).unwrap();
        assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
    }
    // What was seen when is for alarms.
    let metrics = get(&one, "/metrics").await.1;
    assert!(
        metrics.contains(&format!("countersign_issuer_bundle_confirmed_timestamp_seconds {NOW}\n")),
        "{metrics}"
    );
    let whole = map.to_string();
    assert!(!whole.contains("PRIVATE") && !whole.contains("\"d\""), "no private part: {whole}");
    let replicas: Vec<_> = map["data"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, _)| key.starts_with("issuer-"))
        .map(|(_, text)| serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap()["replica"].clone())
        .collect();
    assert!(replicas.contains(&json!("one")) && replicas.contains(&json!("two")));

    let only = fleet.agent(&[one.address]);
    let identity = only.first(&fleet, "api").await.unwrap();
    assert_eq!(identity.x509.roots.len(), 2);
    only.stop().await;
    one.stop().await;
    // By a key that only the other replica has ever had.
    let agent = fleet.agent(&[two.address]);
    let renewed = agent.renew("api", &identity).await.unwrap();
    assert_eq!(renewed.x509.roots, identity.x509.roots);
    agent.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn replicas_come_and_go_under_a_running_agent_and_no_call_fails() {
    let fleet = Fleet::new().await;
    // Addresses that are there for good, as a Service's name is; who listens behind them changes.
    let mut replicas = Vec::new();
    for name in ["a", "b", "c"] {
        replicas.push(fleet.replica(name).await);
    }
    let addresses: Vec<_> = replicas.iter().map(|replica| replica.address).collect();
    let agent = fleet.agent(&addresses);
    let mut identity = agent.first(&fleet, "api").await.unwrap();
    for (round, address) in addresses.iter().enumerate() {
        replicas.remove(0).stop().await;
        identity = agent.renew("api", &identity).await.unwrap();
        agent.first(&fleet, "web").await.unwrap();
        let mut config = fleet.config(&format!("new-{round}"));
        config.listen = *address;
        let fresh = Running::start(config).await;
        ready(&fresh).await;
        replicas.push(fresh);
        identity = agent.renew("api", &identity).await.unwrap();
    }
    // None of those that signed the first identity is left, and all tickets in between were honoured.
    assert_eq!(fleet.roots(), 6);
    assert!(agent.client.reached().is_ok());
    for replica in replicas {
        replica.stop().await;
    }
    let error = agent.first(&fleet, "api").await.unwrap_err().to_string();
    assert!(error.contains("none of 3 replicas can help") && error.contains("refused"), "{error}");
    assert!(agent.client.reached().is_err());
    agent.stop().await;
}

#[tokio::test]
async fn a_restart_of_the_only_replica_is_not_noticed() {
    let fleet = Fleet::new().await;
    let issuer = fleet.replica("only").await;
    let agent = fleet.agent(&[issuer.address]);
    let identity = agent.first(&fleet, "api").await.unwrap();
    let mut config = fleet.config("only");
    config.listen = issuer.address;
    issuer.stop().await;
    let issuer = Running::start(config).await;
    ready(&issuer).await;
    let renewed = agent.renew("api", &identity).await.unwrap();
    assert_eq!(renewed.x509.roots.len(), 2, "peers still show SVIDs by the old root");
    agent.client.jwt(&workload("api"), &[], &renewed, "https://api").await.unwrap();
    agent.stop().await;
    issuer.stop().await;
}

/// The old one is gone before the resolver tells of the new one: whoever asks meanwhile is kept, and not refused.
#[tokio::test]
async fn a_call_outlasts_the_time_between_two_replicas() {
    let fleet = Fleet::new().await;
    let issuer = fleet.replica("old").await;
    let agent = fleet.agent(&[issuer.address]);
    let identity = agent.first(&fleet, "api").await.unwrap();
    let mut config = fleet.config("new");
    config.listen = issuer.address;
    issuer.stop().await;
    let successor = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        Running::start(config).await
    };
    let (renewed, issuer) = tokio::join!(agent.renew("api", &identity), successor);
    renewed.unwrap();
    issuer.stop().await;
    agent.stop().await;
}

/// What is asked from then on goes over another one, and nobody waits for the call that is under way.
#[tokio::test]
async fn a_call_under_way_outlives_its_connection_s_time() {
    let fleet = Fleet::new().await;
    let issuer = fleet.replica("one").await;
    let relay = Relay::to(issuer.address).await;
    let agent = fleet.agent(&[relay.address]);
    while agent.client.reached().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let identity = agent.first(&fleet, "api").await.unwrap();
    let (made, ended) = (relay.accepted(), AtomicBool::new(false));
    relay.hold();
    let under_way = async {
        let renewed = agent.renew("api", &identity).await;
        ended.store(true, Ordering::SeqCst);
        renewed
    };
    let meanwhile = async {
        relay.asked().await;
        agent.client.age().await;
        agent.first(&fleet, "web").await.unwrap();
        assert_eq!(relay.accepted(), made + 1);
        assert!(!ended.load(Ordering::SeqCst));
        relay.release();
    };
    let (renewed, ()) = tokio::join!(under_way, meanwhile);
    assert_ne!(renewed.unwrap().x509.chain, identity.x509.chain);
    // The old connection goes with its last call.
    while relay.open() > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.renew("api", &identity).await.unwrap();
    assert_eq!(relay.accepted(), made + 1);
    agent.stop().await;
    issuer.stop().await;
}

#[tokio::test]
async fn how_the_replicas_stand_is_counted() {
    let fleet = Fleet::new().await;
    let issuer = fleet.replica("one").await;
    let agent = fleet.agent(&[issuer.address]);
    assert_eq!(agent.client.standing(), Standing::default());
    while agent.client.reached().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(agent.client.standing(), Standing { answering: 1, ..Standing::default() });
    agent.stop().await;
    // One that refuses is passed over, whichever was asked first.
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let agent = fleet.agent(&[nobody, issuer.address]);
    while agent.client.reached().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.first(&fleet, "api").await.unwrap();
    let Standing { answering, failing, untried } = agent.client.standing();
    assert_eq!((answering, failing + untried), (1, 1));
    issuer.stop().await;
    agent.first(&fleet, "api").await.unwrap_err();
    assert_eq!(agent.client.standing(), Standing { failing: 2, ..Standing::default() });
    // Another connection to the same replica is no other replica.
    agent.client.age().await;
    agent.first(&fleet, "api").await.unwrap_err();
    assert_eq!(agent.client.standing(), Standing { failing: 2, ..Standing::default() });
    agent.stop().await;
}

/// Waits while time goes on in leaps of ten seconds. Between two of them more and more real time is left, for a leap cuts off
/// every request under way: on a busy machine none would ever end.
async fn in_time(what: &str, done: impl Fn() -> bool) {
    for leap in 1..=150 {
        if done() {
            return;
        }
        pass(Duration::from_secs(10)).await;
        tokio::time::sleep(Duration::from_millis(20 * leap)).await;
    }
    panic!("{what}: not in 25 minutes");
}

#[tokio::test]
async fn the_root_is_rotated_under_a_running_agent() {
    let fleet = Fleet::new().await;
    let (one, two) = (fleet.replica("one").await, fleet.replica("two").await);
    let agent = fleet.agent(&[one.address, two.address]);
    agent.first(&fleet, "api").await.unwrap();
    let mut seen = entries(fleet.api.object(PATH).as_ref());
    assert_eq!(seen.len(), 2);
    // Half-way the successors come, an hour later they sign; when the first ones end, the third ones come.
    for change in 1..=2 {
        // Leaps of time cut off what is under way; an hour before the change everything is as if it had passed slowly.
        let until_then = (crate::issuer::root::LIFE / 2).saturating_sub(Duration::from_secs(3600));
        pass(if change == 1 { until_then } else { until_then.saturating_sub(Duration::from_secs(3 * 3600)) })
            .await;
        in_time("both replicas renew their entries", || fleet.lasting() >= 2).await;
        let token = fleet.cluster.token("api", |claims| claims["exp"] = (NOW + 30 * 86400).into());
        let token = crate::identity::Token { audience: "countersign".to_owned(), token };
        let mut identity = agent.client.x509(&workload("api"), &[token], None).await.unwrap();
        let first = identity.x509.chain.clone();
        // Half of an SVID's life at a time, by key alone.
        for step in 1..=8 {
            pass(Duration::from_secs(1800)).await;
            identity = agent
                .renew("api", &identity)
                .await
                .unwrap_or_else(|error| panic!("change {change}, step {step}: {error}"));
        }
        assert_ne!(identity.x509.chain, first);
        // What was under way at a leap has failed and is made again soon.
        let published = || entries(fleet.api.object(PATH).as_ref());
        in_time("both successors are published", || published().difference(&seen).count() >= 2).await;
        seen.extend(published());
    }
    agent.stop().await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn nothing_is_signed_before_it_is_published() {
    let fleet = Fleet::new().await;
    let first = fleet.replica("first").await;
    let agent = fleet.agent(&[first.address]);
    agent.first(&fleet, "api").await.unwrap();
    let mut config = fleet.config("second");
    config.publication.as_mut().unwrap().grace = Duration::from_secs(60);
    let second = Running::start(config).await;
    fleet.api.until(PATH, |map| roots(map) == 2).await;
    let waits = "[-] publication: published; ready 1m later";
    while !get(&second, "/readyz").await.1.contains(waits) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(get(&second, "/readyz").await.0, 503);
    // Who comes all the same is sent on.
    let early = fleet.agent(&[second.address]);
    let error = early.first(&fleet, "api").await.unwrap_err();
    assert!(matches!(error, Error::IdentityUnavailable { .. }));
    assert!(error.to_string().contains("this issuer's keys are not published yet"), "{error}");
    let both = fleet.agent(&[first.address, second.address]);
    for _ in 0..4 {
        both.first(&fleet, "api").await.unwrap();
    }
    pass(Duration::from_secs(60)).await;
    ready(&second).await;
    early.first(&fleet, "api").await.unwrap();
    for agent in [agent, early, both] {
        agent.stop().await;
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn an_api_server_that_refuses_is_named_and_overcome() {
    let fleet = Fleet::new().await;
    for _ in 0..2 {
        fleet.api.will_refuse(403, "configmaps \"countersign-bundle\" is forbidden");
    }
    let issuer = Running::start(fleet.config("one")).await;
    let said = format!(
        "[-] publication: ConfigMap countersign-system/countersign-bundle: API server {}: it answered 403 \
         Forbidden: configmaps \"countersign-bundle\" is forbidden; the issuer's service account needs the rights \
         to get, list, watch and patch it",
        fleet.api.address
    );
    loop {
        let (status, text) = get(&issuer, "/readyz").await;
        if status == 503 && text.contains(&said) {
            break;
        }
        assert_eq!(status, 503, "{text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ready(&issuer).await;
    // Taken away by an administrator: it is back, and nothing else was asked for it.
    fleet.api.remove(PATH);
    fleet.api.until(PATH, |map| roots(map) == 1).await;
    // One entry less, by hand: the living replica's comes back too.
    let mut map = fleet.api.object(PATH).unwrap();
    map["data"].as_object_mut().unwrap().retain(|key, _| !key.starts_with("issuer-"));
    fleet.api.put(PATH, map);
    fleet.api.until(PATH, |map| entries(map).len() == 1).await;
    issuer.stop().await;
}

#[tokio::test]
async fn issuers_of_two_trust_domains_do_not_undo_each_other_s_bundle_without_end() {
    let fleet = Fleet::new().await;
    let old = fleet.replica("old").await;
    let mut config = fleet.config("new");
    config.trust_domain = "elsewhere.org".parse().unwrap();
    let new = Running::start(config).await;
    // Neither waits for the other to go: a rollout has to get on.
    ready(&new).await;
    let published = || fleet.api.object(PATH).map(|map| (root_of(&map, "new"), map));
    let theirs = || published().is_some_and(|(root, map)| map["data"]["bundle.pem"] == json!(root));
    assert!(theirs(), "who comes has the bundle");
    let before = fleet.api.asked("PATCH", PATH);
    for _ in 0..30 {
        pass(Duration::from_secs(20)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let writes = fleet.api.asked("PATCH", PATH) - before;
    assert!((1..=12).contains(&writes), "{writes} writes in ten minutes");
    old.stop().await;
    pass(Duration::from_secs(61)).await;
    in_time("the bundle is that of who is left", theirs).await;
    new.stop().await;
}

#[tokio::test]
async fn a_quiet_hour_costs_the_api_server_next_to_nothing() {
    let fleet = Fleet::new().await;
    let issuer = fleet.replica("one").await;
    let agent = fleet.agent(&[issuer.address]);
    agent.first(&fleet, "api").await.unwrap();
    let before = fleet.api.questions().len();
    for _ in 0..60 {
        pass(Duration::from_secs(60)).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let writes = fleet.api.asked("PATCH", PATH);
    assert!(writes <= 2, "{writes} writes in an hour");
    // Lists and watches: twelve of each an hour, for issuer and agent.
    let questions = fleet.api.questions().len() - before;
    assert!(questions <= 60, "{questions} questions in an hour");
    agent.stop().await;
    issuer.stop().await;
}

#[tokio::test]
async fn the_reviewer_decides_on_readiness_too() {
    let fleet = Fleet::new().await;
    let mut config = fleet.config("one");
    config.publication = None;
    config.reviewer = ReviewerConfig::Kubernetes(fleet.api.server(fleet.cluster.dir.path()));
    fleet.api.will_refuse(403, "tokenreviews is forbidden");
    fleet.api.will_answer(201, &json!({"status": {"authenticated": false, "error": "invalid bearer token"}}));
    let issuer = Running::start(config).await;
    let why =
        "tokenreviews is forbidden; the issuer's service account needs the right to create tokenreviews";
    while !get(&issuer, "/readyz").await.1.contains(why) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ready(&issuer).await;
    issuer.stop().await;
}

#[tokio::test]
async fn a_replica_that_refuses_or_is_silent_is_passed_over() {
    let fleet = Fleet::new().await;
    let issuer = fleet.replica("one").await;
    // Takes connections, and says nothing on them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let agent = fleet.agent(&[nobody, silent.local_addr().unwrap(), issuer.address]);
    for _ in 0..3 {
        agent.first(&fleet, "api").await.unwrap();
    }
    assert!(agent.client.reached().is_ok());
    agent.stop().await;
    issuer.stop().await;
}

#[tokio::test]
async fn roots_that_the_watch_has_not_brought_are_asked_for() {
    let fleet = Fleet::new().await;
    let first = fleet.replica("first").await;
    let second = Running::start(fleet.config("second")).await;
    ready(&second).await;
    let map = fleet.api.object(PATH).unwrap();
    // The agent's first look is at a bundle without the second root, and its watch stays silent.
    let mut old = map.clone();
    let pem = old["data"]["bundle.pem"].as_str().unwrap().to_owned();
    let boundary = pem.find("-----END").unwrap();
    let (one, _) = pem.split_at(pem[boundary..].find('\n').unwrap() + boundary + 1);
    old["data"]["bundle.pem"] = json!(one);
    fleet.api.will_answer(200, &json!({"metadata": {"resourceVersion": "1"}, "items": [old]}));
    fleet.api.will(Reply::Never);
    let agent = fleet.agent(&[first.address, second.address]);
    while agent.client.reached().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (known, unknown) =
        if pem.starts_with(&root_of(&map, "first")) { (first, second) } else { (second, first) };
    known.stop().await;
    agent.first(&fleet, "api").await.unwrap();
    agent.stop().await;
    unknown.stop().await;
}

fn root_of(map: &Value, replica: &str) -> String {
    let entries = map["data"].as_object().unwrap().iter().filter(|(key, _)| key.starts_with("issuer-"));
    let entry = entries
        .map(|(_, text)| serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap())
        .find(|entry| entry["replica"] == replica)
        .unwrap();
    entry["root"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_the_agent_cannot_reach_is_named() {
    let fleet = Fleet::new().await;
    let agent_token = fleet.cluster.path("agent-token");
    write(&agent_token, fleet.cluster.agent_token("node-1").expose());
    let client = |address: &str| {
        Embedded::new(embedded::Config {
            address: address.to_owned(),
            bundle: BundleSource::File(fleet.cluster.path("bundle.pem")),
            agent_token: agent_token.clone(),
            audience: "countersign".to_owned(),
            trust_domain: "example.org".parse().unwrap(),
            clock: fleet.clock,
        })
    };
    write(&fleet.cluster.path("bundle.pem"), fleet.api.ca_pem.as_bytes());
    for (address, why) in [
        ("nowhere.invalid:8443", "the issuer's address nowhere.invalid:8443 can't be resolved: "),
        ("countersign-issuer", "the issuer's address \"countersign-issuer\" is not HOST:PORT"),
        ("issuer:port", "the issuer's address \"issuer:port\" is not HOST:PORT"),
        ("127.0.0.1:1", "the issuer at 127.0.0.1:1: Connection refused"),
    ] {
        let error =
            client(address).x509(&workload("api"), &fleet.cluster.tokens("api"), None).await.unwrap_err();
        assert!(matches!(error, Error::IdentityUnavailable { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let agent = fleet.agent(&["127.0.0.1:1".parse().unwrap()]);
    let error = agent.first(&fleet, "api").await.unwrap_err().to_string();
    assert!(
        error.contains(
            "trust bundle ConfigMap countersign-system/countersign-bundle: does not exist; the issuer's"
        ),
        "{error}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn clocks_that_are_apart_are_named() {
    let fleet = Fleet::new().await;
    let issuer = fleet.replica("one").await;
    let pem = fleet.api.object(PATH).unwrap()["data"]["bundle.pem"].as_str().unwrap().to_owned();
    write(&fleet.cluster.path("bundle.pem"), pem.as_bytes());
    let late = Clock::pinned(crate::identity::svid::moment(NOW - 7200));
    let client = fleet.cluster.client(issuer.address, late);
    let error = client.x509(&workload("api"), &fleet.cluster.tokens("api"), None).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("compare the clocks of this node and the issuer's"), "{error}");
    let late = Fleet { clock: late, ..fleet };
    let agent = late.agent(&[issuer.address]);
    let error = agent.first(&late, "api").await.unwrap_err().to_string();
    assert!(error.contains("compare the clocks of this machine and the API server's"), "{error}");
    agent.stop().await;
    issuer.stop().await;
}

#[tokio::test]
async fn an_identity_takes_up_roots_that_come_and_drops_those_that_go_but_never_its_own() {
    let fleet = Fleet::new().await;
    let one = fleet.replica("one").await;
    let agent = fleet.agent(&[one.address]);
    let identity = agent.first(&fleet, "api").await.unwrap();
    let now = fleet.clock.wall();
    assert!(identity.beside(&Arc::new(identity.x509.roots.clone()), now).is_none(), "nothing new");
    let two = fleet.replica("two").await;
    let mut roots = agent.client.roots().unwrap();
    let both = Arc::clone(&*roots.wait_for(|roots| roots.len() == 2).await.unwrap());
    let after = identity.beside(&both, now).unwrap();
    assert_eq!((after.x509.roots.len(), &after.x509.chain), (2, &identity.x509.chain));
    assert_eq!(after.x509.key, identity.x509.key);
    assert!(after.beside(&Arc::new(identity.x509.roots.clone()), now).is_some());
    let others: Vec<_> = both.iter().filter(|root| !identity.x509.roots.contains(root)).cloned().collect();
    assert!(after.beside(&Arc::new(others), now).is_none(), "peers could not verify it");
    assert!(after.beside(&Arc::new(Vec::new()), now).is_none());
    assert!(after.beside(&Arc::new(vec![b"no certificate".to_vec()]), now).is_none());
    agent.stop().await;
    one.stop().await;
    two.stop().await;
}
