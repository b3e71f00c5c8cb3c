//! The Delegated Identity API: a stand-in for SPIRE's admin socket, and one for the API server that says what pods are.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use countersign_proto::delegated::delegated_identity_server::DelegatedIdentity;
use countersign_proto::delegated::{
    FetchJwtsviDsRequest, FetchJwtsviDsResponse, Jwtsvid, Selector, Spiffeid, SubscribeToJwtBundlesRequest,
    SubscribeToJwtBundlesResponse, SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse,
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse, X509svid as Certificate, X509svidWithKey,
};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use serde_json::{Value, json};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response};

use super::fake::Service;
use super::*;
use crate::issuer::tests::cluster::{Cluster, clock, workload};
use crate::kubernetes::testing::ApiServer;

/// What the test has told the admin socket.
#[derive(Default)]
pub(super) struct Script {
    /// What is said of every pod.
    says: watch::Sender<SubscribeToX509sviDsResponse>,
    bundles: watch::Sender<HashMap<String, Vec<u8>>>,
    jwts: Mutex<Vec<Jwtsvid>>,
    refuses: Mutex<Option<Status>>,
    /// The selectors that came with each question for an SVID.
    asked: Mutex<Vec<BTreeSet<String>>>,
}

impl Script {
    fn ask(&self, selectors: &[Selector]) -> Result<(), Status> {
        let selectors = selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
        self.asked.lock().unwrap().push(selectors);
        self.allow()
    }

    fn allow(&self) -> Result<(), Status> {
        self.refuses.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl DelegatedIdentity for Service {
    type SubscribeToX509SVIDsStream = Answers<SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Answers<SubscribeToX509BundlesResponse>;
    type SubscribeToJWTBundlesStream = Answers<SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let script = &self.0.delegated;
        script.ask(&request.get_ref().selectors)?;
        Ok(Response::new(WatchStream::new(script.says.subscribe()).map(Ok).boxed()))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        _: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        self.0.delegated.allow()?;
        let bundles = WatchStream::new(self.0.delegated.bundles.subscribe());
        let message = |ca_certificates| Ok(SubscribeToX509BundlesResponse { ca_certificates });
        Ok(Response::new(bundles.map(message).boxed()))
    }

    async fn fetch_jwtsvi_ds(
        &self,
        request: Request<FetchJwtsviDsRequest>,
    ) -> Result<Response<FetchJwtsviDsResponse>, Status> {
        self.0.delegated.ask(&request.get_ref().selectors)?;
        let svids = self.0.delegated.jwts.lock().unwrap().clone();
        Ok(Response::new(FetchJwtsviDsResponse { svids }))
    }

    async fn subscribe_to_jwt_bundles(
        &self,
        _: Request<SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        self.0.delegated.allow()?;
        let keys = WatchStream::new(self.0.keys.subscribe());
        Ok(Response::new(keys.map(|bundles| Ok(SubscribeToJwtBundlesResponse { bundles })).boxed()))
    }
}

const POD: &str = "/api/v1/namespaces/pay/pods/api-0";
const OWN: &str = "spiffe://example.org";
const PARTNER: &str = "spiffe://partner.example";

/// A SPIRE agent with an admin socket, an API server with one pod, and us beside them.
struct Admin {
    authority: Authority,
    fake: Fake,
    server: ApiServer,
    spire: Arc<Spire>,
    shutdown: CancellationToken,
    life: JoinSet<()>,
    directory: TempDir,
    _cluster: Cluster,
}

impl Admin {
    async fn new() -> Self {
        Self::with(|_, delegated| WayConfig::Delegated(delegated), |_| {}).await
    }

    async fn with(
        way: impl FnOnce(BrokerConfig, DelegatedConfig) -> WayConfig,
        before: impl FnOnce(&std::path::Path),
    ) -> Self {
        let (directory, cluster) = (tempfile::tempdir().unwrap(), Cluster::new());
        let (authority, server) = (Authority::new("example.org"), ApiServer::start().await);
        server.put(POD, object());
        let fake = Fake::start(directory.path(), &authority.svid(AGENT, clock().wall(), 24 * HOUR));
        before(directory.path());
        let socket =
            |name: &str| -> Socket { directory.path().join(name).to_str().unwrap().parse().unwrap() };
        let broker =
            BrokerConfig { workload_socket: socket("api.sock"), broker_socket: socket("broker.sock") };
        let delegated = DelegatedConfig {
            admin_socket: socket("admin.sock"),
            server: server.server(cluster.dir.path()),
            node: "node-1".to_owned(),
        };
        let trust_domain = "example.org".parse().unwrap();
        let config = Config { way: way(broker, delegated), trust_domain, hint: None, clock: clock() };
        let spire = Arc::new(Spire::open(config));
        fake.script.keys.send_replace(authority.jwt_bundles());
        // The stand-in's TLS looks at the system's clock, and we at the test's.
        let ours = authority.svid_with(US, clock().wall(), 24 * HOUR, |leaf| {
            leaf.not_before = rcgen::date_time_ymd(2000, 1, 1);
        });
        *fake.script.own.lock().unwrap() = Some(watch::channel(Ok(workload_message(&[&ours]))).0);
        let bundles = HashMap::from([(OWN.to_owned(), authority.root_der.clone())]);
        fake.script.delegated.bundles.send_replace(bundles);
        let (shutdown, mut life) = (CancellationToken::new(), JoinSet::new());
        let (running, until) = (Arc::clone(&spire), shutdown.clone());
        life.spawn(async move { running.run(&until).await });
        Self { authority, fake, server, spire, shutdown, life, directory, _cluster: cluster }
    }

    fn signed(&self) -> Signed {
        self.authority.svid("spiffe://example.org/a", clock().wall(), HOUR)
    }

    fn says(&self, svids: &[&Signed], federates_with: &[&str]) {
        let x509_svids = svids.iter().map(|signed| with_key(signed)).collect();
        let federates_with = federates_with.iter().map(|&name| name.to_owned()).collect();
        let message = SubscribeToX509sviDsResponse { x509_svids, federates_with };
        self.fake.script.delegated.says.send_replace(message);
    }

    fn asked(&self) -> Vec<BTreeSet<String>> {
        self.fake.script.delegated.asked.lock().unwrap().clone()
    }

    async fn svid(&self) -> Result<Arc<X509Svid>, Error> {
        self.spire.x509(&workload("api"), None).await.map(|identity| identity.x509)
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.life.join_next().await {
            ended.unwrap();
        }
        self.fake.stop().await;
        drop(self.directory);
    }
}

fn object() -> Value {
    json!({
        "metadata": {"name": "api-0", "namespace": "pay", "uid": "uid-api", "labels": {"app": "api"}},
        "spec": {"serviceAccountName": "api", "nodeName": "node-1"},
        "status": {},
    })
}

fn with_key(signed: &Signed) -> X509svidWithKey {
    let path = signed.id.strip_prefix(OWN).unwrap().to_owned();
    let x509_svid = Certificate {
        cert_chain: vec![signed.chain.clone()],
        id: Some(Spiffeid { trust_domain: "example.org".to_owned(), path }),
        ..Default::default()
    };
    X509svidWithKey { x509_svid: Some(x509_svid), x509_svid_key: signed.key.clone() }
}

#[tokio::test]
async fn a_pod_without_an_entry_is_told_by_all_that_it_is() {
    let scene = Admin::new().await;
    scene.says(&[], &[]);
    let error = scene.spire.subscribe(&workload("api")).trouble().await.to_string();
    let selectors = "its selectors are k8s:node-name:node-1, k8s:ns:pay, k8s:pod-image-count:0, \
                     k8s:pod-init-image-count:0, k8s:pod-label:app:api, k8s:pod-name:api-0, k8s:pod-uid:uid-api, k8s:sa:api";
    assert!(error.contains(selectors), "{error}");
    scene.end().await;
}

#[tokio::test]
async fn a_pods_svid_by_the_selectors_of_the_pod_as_the_api_server_has_it() {
    let scene = Admin::new().await;
    scene.says(&[&scene.signed()], &[]);
    let _volume = scene.spire.subscribe(&workload("api"));
    let identity = scene.spire.x509(&workload("api"), None).await.unwrap();
    assert_eq!(identity.spiffe_id.as_str(), "spiffe://example.org/a");
    assert_eq!(identity.x509.roots, std::slice::from_ref(&scene.authority.root_der));
    let expires = clock().wall() + HOUR;
    let id = Some(Spiffeid { trust_domain: "example.org".to_owned(), path: "/a".to_owned() });
    let token = scene.authority.jwt(identity.spiffe_id.as_str(), "vault", expires);
    let jwt = Jwtsvid { token: token.clone(), id, ..Default::default() };
    scene.fake.script.delegated.jwts.lock().unwrap().push(jwt);
    let jwt = scene.spire.jwt(&workload("api"), &identity, "vault").await.unwrap();
    assert_eq!(jwt.token.expose(), token.as_bytes());
    // A token of another key's is of no use, though SPIRE's own socket hands it out.
    let forged = Authority::new("example.org").jwt(identity.spiffe_id.as_str(), "vault", expires);
    scene.fake.script.delegated.jwts.lock().unwrap()[0].token = forged;
    assert!(scene.spire.jwt(&workload("api"), &identity, "vault").await.is_err());
    let asked = scene.asked();
    assert!(asked.iter().all(|selectors| *selectors == asked[0]));
    for selector in ["k8s:ns:pay", "k8s:sa:api", "k8s:pod-uid:uid-api", "k8s:pod-label:app:api"] {
        assert!(asked[0].contains(selector), "{selector}");
    }
    assert_eq!(scene.server.asked("GET", POD), 1, "the pod is read once for a stream and its tokens");
    scene.end().await;
}

#[tokio::test]
async fn bundles_that_change_reach_the_pod_and_only_those_it_federates_with() {
    let scene = Admin::new().await;
    let (partner, stranger) = (Authority::new("partner.example"), Authority::new("third.example"));
    scene.says(&[&scene.signed()], &[PARTNER]);
    let _volume = scene.spire.subscribe(&workload("api"));
    assert!(scene.svid().await.unwrap().federated.is_empty());
    scene.spire.changed().await;
    scene.fake.script.delegated.bundles.send_modify(|bundles| {
        bundles.insert(PARTNER.to_owned(), partner.root_der.clone());
        bundles.insert("spiffe://third.example".to_owned(), stranger.root_der.clone());
    });
    let svid = scene.spire.changed().await.svid.unwrap();
    let federated = |svid: &X509Svid| svid.federated.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(federated(&svid), ["partner.example"]);
    // The bundles never lose one, so the entry has the last word.
    scene.fake.script.delegated.says.send_modify(|message| message.federates_with.clear());
    let svid = scene.spire.changed().await.svid.unwrap();
    assert!(federated(&svid).is_empty());
    let next = Authority::new("example.org");
    scene.fake.script.delegated.bundles.send_modify(|bundles| {
        bundles.insert(OWN.to_owned(), [scene.authority.root_der.clone(), next.root_der.clone()].concat());
    });
    assert_eq!(scene.spire.changed().await.svid.unwrap().roots.len(), 2);
    scene.end().await;
}

/// With its server down past an SVID's end, SPIRE 1.15.2 hands out the ended one.
#[tokio::test]
async fn an_ended_svid_is_refused() {
    let scene = Admin::new().await;
    let ended = scene.authority.svid("spiffe://example.org/a", clock().wall() - 2 * HOUR, HOUR);
    scene.says(&[&ended], &[]);
    let _volume = scene.spire.subscribe(&workload("api"));
    scene.fake.script.delegated.says.subscribe().wait_for(|m| !m.x509_svids.is_empty()).await.unwrap();
    let pod = scene.spire.subscribe(&workload("api"));
    let problem = pod.trouble().await.to_string();
    assert!(problem.contains("the X.509-SVID that SPIRE sent can't be used: it is valid from"), "{problem}");
    scene.end().await;
}

#[tokio::test]
async fn what_the_pod_is_not_and_what_is_missing() {
    for (change, part) in [
        (json!({"/metadata/uid": "other"}), r#"has uid "other" now"#),
        (json!({"/spec/nodeName": "node-2"}), r#"is of node "node-2" according to the API server"#),
        (json!({"/spec/serviceAccountName": "root"}), r#"is of service account "root""#),
    ] {
        let scene = Admin::new().await;
        scene.says(&[&scene.signed()], &[]);
        let mut pod = object();
        for (pointer, value) in change.as_object().unwrap() {
            *pod.pointer_mut(pointer).unwrap() = value.clone();
        }
        scene.server.put(POD, pod);
        let problem = scene.spire.subscribe(&workload("api")).trouble().await.to_string();
        assert!(problem.contains(part), "{problem}");
        assert!(scene.asked().is_empty(), "SPIRE is not asked in such a pod's name");
        scene.end().await;
    }
    let scene = Admin::new().await;
    scene.server.will_refuse(403, "pods \"api-0\" is forbidden");
    let problem = scene.spire.subscribe(&workload("api")).trouble().await.to_string();
    assert!(problem.contains("the right to get pods"), "{problem}");
    scene.end().await;
}

#[tokio::test]
async fn a_denial_is_about_us_and_takes_nothing_from_a_pod() {
    let scene = Admin::new().await;
    scene.says(&[&scene.signed()], &[]);
    let _held = scene.spire.subscribe(&workload("api"));
    let svid = scene.svid().await.unwrap();
    for (said, part) in [
        ("caller not configured as an authorized delegate", "to authorized_delegates of the SPIRE agent"),
        ("no identity issued", "no registration entry for this agent itself"),
    ] {
        *scene.fake.script.delegated.refuses.lock().unwrap() = Some(Status::permission_denied(said));
        let mut other = object();
        other["metadata"]["uid"] = "uid-web".into();
        other["metadata"]["name"] = "web-0".into();
        other["spec"]["serviceAccountName"] = "web".into();
        scene.server.put("/api/v1/namespaces/pay/pods/web-0", other);
        let problem = scene.spire.subscribe(&workload("web")).trouble().await.to_string();
        assert!(problem.contains(part), "{problem}");
    }
    assert!(Arc::ptr_eq(&scene.svid().await.unwrap(), &svid));
    scene.end().await;
}

fn either(broker: BrokerConfig, delegated: DelegatedConfig) -> WayConfig {
    WayConfig::Either(broker, delegated)
}

#[tokio::test(start_paused = true)]
async fn the_smaller_power_is_taken_where_spire_has_it() {
    let scene = Admin::with(either, |_| {}).await;
    scene.says(&[&scene.signed()], &[]);
    let message = broker_message(&[&scene.signed()]);
    scene.fake.script.pods.lock().unwrap().insert("uid-api".into(), Word::Says(watch::channel(message).0));
    let _volume = scene.spire.subscribe(&workload("api"));
    scene.svid().await.unwrap();
    assert!(scene.asked().is_empty());
    assert_eq!(scene.fake.script.subscribed.load(Ordering::SeqCst), 1);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_larger_power_is_taken_where_spire_has_no_broker_socket() {
    let remove = |directory: &std::path::Path| std::fs::remove_file(directory.join("broker.sock")).unwrap();
    let scene = Admin::with(either, remove).await;
    scene.says(&[&scene.signed()], &[]);
    while scene.spire.reached().is_err() {
        sleep(MOMENT).await;
    }
    // From here on a TCP connection is waited for, and files are read.
    tokio::time::resume();
    let _volume = scene.spire.subscribe(&workload("api"));
    scene.svid().await.unwrap();
    assert_eq!(scene.asked().len(), 1);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_stranger_at_the_brokers_door_is_no_reason_to_take_the_larger_power() {
    let mut scene = Admin::with(either, |_| {}).await;
    scene.fake.stop().await;
    let impostor = Authority::new("example.org").svid(AGENT, clock().wall(), HOUR);
    scene.fake.serve(&impostor);
    scene.says(&[&scene.signed()], &[]);
    let problem = scene.spire.subscribe(&workload("api")).trouble().await.to_string();
    assert!(problem.contains("its chain does not lead to a root of the bundle"), "{problem}");
    assert!(scene.asked().is_empty());
    scene.end().await;
}
