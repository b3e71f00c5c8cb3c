//! What is asked for rightly and wrongly, over the wire.

use countersign_proto::issuer::issuer_server::Issuer as _;
use countersign_proto::issuer::{MintJwtRequest, Proof, Renewal, SignRequest, proof};
use rcgen::CertificateParams;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Request};

use super::cluster::{Cluster, NOW, Running, clock, workload};
use crate::Error;
use crate::identity::key::PrivateKey;
use crate::identity::renewal;
use crate::identity::{Source, Token, Workload};
use crate::issuer::Config;
use crate::issuer::admit::Gate;
use crate::issuer::jwt::{JwtKey, PublicJwk};
use crate::issuer::keys::Keys;
use crate::issuer::metrics::Metrics;
use crate::issuer::offline::Offline;
use crate::issuer::remembered::Reviews;
use crate::issuer::review::Reviewer;
use crate::issuer::service::Service;
use crate::issuer::ticket::{self, Ticket};
use crate::secret::Secret;

#[tokio::test]
async fn a_pod_gets_its_identity_and_its_jwts() {
    let cluster = Cluster::new();
    let issuer = Running::start(cluster.config()).await;
    let source = Source::Embedded(Box::new(cluster.client(issuer.address, clock())));
    let (pod, tokens) = (workload("api"), cluster.tokens("api"));
    let identity = source.x509(&pod, &tokens, None).await.unwrap();
    assert_eq!(identity.spiffe_id.as_str(), "spiffe://example.org/ns/pay/sa/api");
    let life = identity.x509.not_after.duration_since(identity.x509.not_before).unwrap();
    assert_eq!(life, Duration::from_secs(3610));
    let renewal = identity.renew_at.duration_since(identity.x509.not_before).unwrap();
    assert!((1624..=1986).contains(&renewal.as_secs()), "{renewal:?}");

    let again = source.x509(&pod, &tokens, Some(&identity)).await.unwrap();
    assert_ne!(again.x509.key, identity.x509.key, "a new key every time");

    let jwt = source.jwt(&pod, &tokens, &identity, "https://api.example.org").await.unwrap();
    assert_eq!(jwt.expires, crate::identity::svid::moment(NOW + 300));
    issuer.stop().await;
}

#[tokio::test]
async fn renewal_without_a_token() {
    let cluster = Cluster::new();
    let issuer = Running::start(cluster.config()).await;
    let client = cluster.client(issuer.address, clock());
    let pod = workload("api");
    let first = client.x509(&pod, &cluster.tokens("api"), None).await.unwrap();
    let second = client.x509(&pod, &[], Some(&first)).await.unwrap();
    let third = client.x509(&pod, &[], Some(&second)).await.unwrap();
    assert_eq!(third.spiffe_id, first.spiffe_id);
    client.jwt(&pod, &[], &third, "https://api.example.org").await.unwrap();
    // A token that is past its exp is not even sent.
    let expired = Token {
        audience: "countersign".to_owned(),
        token: cluster.token("api", |claims| claims["exp"] = json!(NOW + 5)),
    };
    client.x509(&pod, std::slice::from_ref(&expired), Some(&third)).await.unwrap();
    let error = client.x509(&pod, std::slice::from_ref(&expired), None).await.unwrap_err();
    assert!(matches!(error, Error::Unauthenticated { .. }));
    assert!(error.to_string().contains("kubelet's next republish brings a new token"), "{error}");
    let error = client.x509(&pod, &[], None).await.unwrap_err().to_string();
    assert!(error.contains("kubelet brought no token for audience \"countersign\""), "{error}");
    issuer.stop().await;
}

#[tokio::test]
async fn what_the_agent_is_told() {
    let cluster = Cluster::new();
    let issuer = Running::start(cluster.config()).await;
    let client = cluster.client(issuer.address, clock());
    let with = |token: Secret| [Token { audience: "countersign".to_owned(), token }];
    let ask = async |pod: &Workload, token: Secret| client.x509(pod, &with(token), None).await.unwrap_err();

    let error = ask(&workload("api"), cluster.token("web", |_| {})).await;
    assert!(matches!(error, Error::IdentityRefused { .. }));
    assert_eq!(
        error.to_string(),
        "identity: the issuer refuses: asked for pod pay/api-0 (uid-api) of service account api, \
         but the proof is of pod pay/web-0 (uid-web) of service account web"
    );
    let elsewhere = cluster.token("api", |claims| claims["kubernetes.io"]["node"]["name"] = json!("node-2"));
    let error = ask(&workload("api"), elsewhere).await;
    assert!(matches!(error, Error::IdentityRefused { .. }));
    assert!(
        error.to_string().contains("the workload is on node \"node-2\" and the calling agent on \"node-1\"")
    );
    let other = cluster.token("api", |claims| claims["aud"] = json!(["vault"]));
    let error = ask(&workload("api"), other).await;
    assert!(matches!(error, Error::Unauthenticated { .. }));
    assert!(
        error.to_string().contains("the workload's token is not for audience \"countersign\""),
        "{error}"
    );
    let forged = Cluster::new().token_with_kid(&cluster.kid(), "api");
    let error = ask(&workload("api"), forged).await;
    assert!(matches!(error, Error::Unauthenticated { .. }));
    assert!(error.to_string().contains("the signature does not verify"), "{error}");

    // Another pod's token in place of the agent's.
    let path = cluster.path("stolen");
    super::cluster::write(&path, cluster.token("web", |_| {}).expose());
    let stranger = cluster.client_with(path, issuer.address, clock());
    let error = stranger.x509(&workload("api"), &cluster.tokens("api"), None).await.unwrap_err();
    assert!(matches!(error, Error::IdentityRefused { .. }));
    assert!(error.to_string().contains("the caller is service account pay/web, not an agent"), "{error}");
    issuer.stop().await;
}

/// The service without the wire, for what the agent's client would never send.
struct Direct {
    cluster: Cluster,
    keys: Arc<Keys>,
    service: Service,
    key: PrivateKey,
}

impl Direct {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let cluster = Cluster::new();
        let mut config = cluster.config();
        change(&mut config);
        let keys = Arc::new(Keys::new(&config, config.clock.wall()).unwrap());
        let metrics = Arc::new(Metrics::new());
        let offline =
            Offline::new(cluster.jwks(), Cluster::ISSUER.to_owned(), "countersign".to_owned(), config.clock);
        let gate = Gate {
            reviews: Arc::new(Reviews::new(
                Reviewer::Offline(Box::new(offline)),
                config.clock,
                Arc::clone(&metrics),
                Arc::new(crate::issuer::health::Health::new(false, false)),
            )),
            publication: None,
            keys: Arc::clone(&keys),
            agent: config.agent.clone(),
            trust_domain: config.trust_domain.clone(),
            renew_without_token: config.renew_without_token,
            clock: config.clock,
        };
        let service = Service { config: Arc::new(config), gate, keys: Arc::clone(&keys), metrics };
        Self { cluster, keys, service, key: PrivateKey::generate().unwrap() }
    }

    fn csr() -> Vec<u8> {
        let key = PrivateKey::generate().unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }

    fn wire(name: &str) -> countersign_proto::issuer::Workload {
        countersign_proto::issuer::Workload {
            namespace: "pay".to_owned(),
            pod_name: format!("{name}-0"),
            pod_uid: format!("uid-{name}"),
            service_account: name.to_owned(),
        }
    }

    fn token_proof(token: &Secret) -> Proof {
        let token = String::from_utf8(token.expose().to_vec()).unwrap();
        Proof { proof: Some(proof::Proof::Token(token)) }
    }

    fn request(&self, agent: Option<&Secret>, change: impl FnOnce(&mut SignRequest)) -> Request<SignRequest> {
        let token = self.cluster.token("api", |_| {});
        let mut message = SignRequest {
            workload: Some(Self::wire("api")),
            proof: Some(Self::token_proof(&token)),
            csr: Self::csr(),
        };
        change(&mut message);
        Self::with_bearer(agent, message)
    }

    fn with_bearer<T>(agent: Option<&Secret>, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(agent) = agent {
            let text = format!("Bearer {}", std::str::from_utf8(agent.expose()).unwrap());
            request.metadata_mut().insert("authorization", text.parse().unwrap());
        }
        request
    }

    async fn sign(&self, change: impl FnOnce(&mut SignRequest)) -> (Code, String) {
        let agent = self.cluster.agent_token("node-1");
        match self.service.sign(self.request(Some(&agent), change)).await {
            Ok(_) => (Code::Ok, String::new()),
            Err(status) => (status.code(), status.message().to_owned()),
        }
    }

    async fn mint(&self, audience: &str, proof: Proof) -> (Code, String) {
        let agent = self.cluster.agent_token("node-1");
        let message = MintJwtRequest {
            workload: Some(Self::wire("api")),
            proof: Some(proof),
            audience: audience.to_owned(),
        };
        match self.service.mint_jwt(Self::with_bearer(Some(&agent), message)).await {
            Ok(_) => (Code::Ok, String::new()),
            Err(status) => (status.code(), status.message().to_owned()),
        }
    }

    /// A ticket as the issuer would write it for our key.
    fn ticket(&self) -> Ticket {
        let pod = ticket::Pod {
            namespace: "pay".to_owned(),
            name: "api-0".to_owned(),
            uid: "uid-api".to_owned(),
            service_account: "api".to_owned(),
        };
        Ticket {
            aud: ticket::AUDIENCE.to_owned(),
            sub: "spiffe://example.org/ns/pay/sa/api".to_owned(),
            iat: NOW - 1800,
            exp: NOW + 1800,
            pod,
            node: "node-1".to_owned(),
            reviewed_at: NOW - 1800,
            cnf: ticket::Confirmation { jwk: PublicJwk::of(&self.key.public_key_info()).unwrap() },
        }
    }

    fn seal(&self, ticket: &Ticket) -> String {
        ticket::seal(&self.keys.latest(crate::identity::svid::moment(NOW)).unwrap().jwt, ticket).unwrap()
    }

    fn renewal(&self, ticket: &str, signed_at: i64, subject: &[u8]) -> Proof {
        let signature = self.key.sign_message(&renewal::message(ticket, signed_at, subject)).unwrap();
        let renewal = Renewal { ticket: ticket.to_owned(), signed_at, signature };
        Proof { proof: Some(proof::Proof::Renewal(renewal)) }
    }

    async fn renew(&self, ticket: &str) -> (Code, String) {
        self.sign(|request| request.proof = Some(self.renewal(ticket, NOW, &request.csr))).await
    }

    async fn renew_with(&self, change: impl FnOnce(&mut Ticket)) -> (Code, String) {
        let mut ticket = self.ticket();
        change(&mut ticket);
        self.renew(&self.seal(&ticket)).await
    }
}

fn refused(answer: &(Code, String), code: Code, why: &str) {
    assert_eq!(answer.0, code, "{}", answer.1);
    assert!(answer.1.contains(why), "{}", answer.1);
}

#[tokio::test]
async fn the_caller_must_be_an_agent() {
    let direct = Direct::new();
    let call = async |agent: Option<&Secret>| {
        let status = direct.service.sign(direct.request(agent, |_| {})).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    refused(&call(None).await, Code::Unauthenticated, "the agent's token is missing");
    refused(
        &call(Some(&Secret::from("junk".to_owned()))).await,
        Code::Unauthenticated,
        "the agent's token is no pod-bound",
    );
    let expired = direct.cluster.token("agent", |claims| claims["exp"] = json!(NOW - 60));
    refused(&call(Some(&expired)).await, Code::Unauthenticated, "the agent's token has expired");
    let pod = direct.cluster.token("api", |_| {});
    refused(
        &call(Some(&pod)).await,
        Code::PermissionDenied,
        "the caller is service account pay/api, not an agent (countersign-system/countersign-agent; --agent-service-account)",
    );
}

#[tokio::test]
async fn the_request_must_agree_with_the_token_in_everything() {
    let direct = Direct::new();
    assert_eq!(direct.sign(|_| {}).await.0, Code::Ok);
    let denied = async |change: fn(&mut countersign_proto::issuer::Workload)| {
        let answer = direct.sign(|request| change(request.workload.as_mut().unwrap())).await;
        refused(&answer, Code::PermissionDenied, "but the proof is of pod pay/api-0 (uid-api)");
    };
    denied(|workload| workload.namespace = "kube-system".to_owned()).await;
    denied(|workload| workload.pod_name = "api-1".to_owned()).await;
    denied(|workload| workload.pod_uid = "uid-old".to_owned()).await;
    denied(|workload| workload.service_account = "admin".to_owned()).await;
    let answer = direct.sign(|request| request.workload = None).await;
    refused(&answer, Code::InvalidArgument, "the request's workload is missing");
    let answer = direct.sign(|request| request.workload.as_mut().unwrap().pod_uid.clear()).await;
    refused(&answer, Code::InvalidArgument, "must have namespace, pod name, pod uid and service account");
    for proof in [None, Some(Proof { proof: None }), Some(Direct::token_proof(&Secret::from(String::new())))]
    {
        let answer = direct.sign(|request| request.proof = proof).await;
        refused(&answer, Code::Unauthenticated, "the workload's token is missing");
    }
    let answer = direct.sign(|request| request.csr.clear()).await;
    refused(&answer, Code::InvalidArgument, "the request's csr is missing");
}

#[tokio::test]
async fn jwts_for_fit_audiences_only() {
    let direct = Direct::new();
    let proof = || Direct::token_proof(&direct.cluster.token("api", |_| {}));
    assert_eq!(direct.mint("https://api", proof()).await.0, Code::Ok);
    for audience in ["", "a\u{7}b", "countersign", ticket::AUDIENCE] {
        refused(&direct.mint(audience, proof()).await, Code::InvalidArgument, "the request's audience");
    }
}

#[tokio::test]
async fn a_renewal_and_every_way_to_forge_one() {
    let direct = Direct::new();
    assert_eq!(direct.renew(&direct.seal(&direct.ticket())).await.0, Code::Ok);
    let unauthenticated = |answer: &(Code, String), why: &str| {
        refused(answer, Code::Unauthenticated, why);
        assert!(answer.1.ends_with("kubelet's next republish brings a token"), "{}", answer.1);
    };

    // Any field changed without the issuer's key.
    let sealed = direct.seal(&direct.ticket());
    let parts: Vec<_> = sealed.split('.').collect();
    for change in [
        |ticket: &mut Ticket| ticket.sub.push('x'),
        |ticket: &mut Ticket| ticket.exp += 1,
        |ticket: &mut Ticket| ticket.node = "node-2".to_owned(),
        |ticket: &mut Ticket| ticket.reviewed_at += 1,
        |ticket: &mut Ticket| ticket.pod.uid.push('x'),
        |ticket: &mut Ticket| ticket.cnf.jwk.x = ticket.cnf.jwk.y.clone(),
    ] {
        let mut ticket = direct.ticket();
        change(&mut ticket);
        let forged = direct.seal(&ticket);
        let claims = forged.split('.').nth(1).unwrap();
        let spliced = format!("{}.{claims}.{}", parts[0], parts[2]);
        unauthenticated(&direct.renew(&spliced).await, "signature or form is wrong");
    }
    let stranger = JwtKey::new(&PrivateKey::generate().unwrap()).unwrap();
    let foreign = ticket::seal(&stranger, &direct.ticket()).unwrap();
    unauthenticated(&direct.renew(&foreign).await, "not by a key this issuer knows");
    unauthenticated(&direct.renew("junk").await, "can't be read");

    // A ticket of the issuer's that does not fit.
    let answer = direct.renew_with(|ticket| ticket.node = "node-2".to_owned()).await;
    refused(&answer, Code::PermissionDenied, "the workload is on node \"node-2\"");
    let answer = direct.renew_with(|ticket| ticket.pod.uid = "uid-old".to_owned()).await;
    refused(&answer, Code::PermissionDenied, "but the proof is of pod pay/api-0 (uid-old)");
    let other = |ticket: &mut Ticket| ticket.sub = "spiffe://example.org/ns/pay/sa/web".to_owned();
    unauthenticated(&direct.renew_with(other).await, "another SPIFFE ID");
    unauthenticated(&direct.renew_with(|ticket| ticket.exp = NOW).await, "ended with its SVID");
    unauthenticated(&direct.renew_with(|ticket| ticket.aud = "x".to_owned()).await, "some other token");
    let old = |ticket: &mut Ticket| ticket.reviewed_at = NOW - 24 * 3600;
    unauthenticated(&direct.renew_with(old).await, "--renew-without-token");
    let nearly = |ticket: &mut Ticket| ticket.reviewed_at = NOW - 24 * 3600 + 60;
    assert_eq!(direct.renew_with(nearly).await.0, Code::Ok);
    let another = PublicJwk::of(&PrivateKey::generate().unwrap().public_key_info()).unwrap();
    let answer = direct.renew_with(|ticket| ticket.cnf.jwk = another).await;
    unauthenticated(&answer, "not by the ticket's key");
}

#[tokio::test]
async fn a_signature_is_for_one_request_at_one_time() {
    let direct = Direct::new();
    let sealed = direct.seal(&direct.ticket());
    let why = "not by the ticket's key over this request";
    // Another CSR, another audience, a CSR's hash for an audience.
    let replay = direct.renewal(&sealed, NOW, &Direct::csr());
    refused(&direct.sign(|request| request.proof = Some(replay.clone())).await, Code::Unauthenticated, why);
    refused(&direct.mint("https://api", replay).await, Code::Unauthenticated, why);
    let for_api = || direct.renewal(&sealed, NOW, b"https://api");
    assert_eq!(direct.mint("https://api", for_api()).await.0, Code::Ok);
    refused(&direct.mint("https://other", for_api()).await, Code::Unauthenticated, why);
    // Another time than the signed one, and too far from now.
    let mut moved = for_api();
    if let Some(proof::Proof::Renewal(renewal)) = &mut moved.proof {
        renewal.signed_at += 1;
    }
    refused(&direct.mint("https://api", moved).await, Code::Unauthenticated, why);
    for (signed_at, good) in [(NOW - 60, true), (NOW + 60, true), (NOW - 61, false), (NOW + 61, false)] {
        let answer = direct.mint("https://api", direct.renewal(&sealed, signed_at, b"https://api")).await;
        assert_eq!(answer.0, if good { Code::Ok } else { Code::Unauthenticated }, "{}", answer.1);
    }
}

#[tokio::test]
async fn a_jwt_svid_is_no_ticket_and_the_window_can_be_closed() {
    let direct = Direct::with(|config| config.renew_without_token = Duration::ZERO);
    let answer = direct.renew_with(|ticket| ticket.reviewed_at = NOW).await;
    refused(&answer, Code::Unauthenticated, "--renew-without-token");

    let agent = direct.cluster.agent_token("node-1");
    let message = MintJwtRequest {
        workload: Some(Direct::wire("api")),
        proof: Some(Direct::token_proof(&direct.cluster.token("api", |_| {}))),
        audience: "https://api".to_owned(),
    };
    let jwt = direct.service.mint_jwt(Direct::with_bearer(Some(&agent), message)).await.unwrap();
    let answer = direct.renew(&jwt.into_inner().token).await;
    refused(&answer, Code::Unauthenticated, "some other token");
}
