//! Identities from the embedded issuer: the key is made here and never leaves the node.

mod trouble;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use countersign_proto::issuer::issuer_client::IssuerClient;
use countersign_proto::issuer::{self as wire, proof};
use rcgen::{CertificateParams, DistinguishedName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Status};

use self::trouble::{refusal, refused, unavailable, unusable};
use crate::Error;
use crate::clock::Clock;
use crate::identity::key::PrivateKey;
use crate::identity::renewal::{self, renew_at};
use crate::identity::replicas::{DEADLINE, Replicas, Standing, Unanswered};
use crate::identity::reread::{self, Reread};
use crate::identity::svid::{unix, verify_jwt, verify_x509};
use crate::identity::token::glance;
use crate::identity::trust::Trust;
use crate::identity::{Identity, JwtSvid, Roots, Ticket, Token, Workload, X509Svid};
use crate::kubernetes::{Api, Caller, ObjectName, Server};
use crate::secret::Secret;
use crate::spiffe::{SpiffeId, TrustDomain};

/// A token that ends sooner than this might end on the way.
const TOKEN_MARGIN: i64 = 5;

/// What the agent has to know of the issuer.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST:PORT`, or several with commas between them. All addresses behind a name are replicas.
    pub address: String,
    /// Where the roots of the trust domain come from.
    pub bundle: BundleSource,
    /// File with the agent's own pod-bound token; read again when it changes.
    pub agent_token: PathBuf,
    /// The audience of that token and of the workloads' tokens.
    pub audience: String,
    /// The trust domain whose SVIDs are accepted.
    pub trust_domain: TrustDomain,
    /// Time.
    pub clock: Clock,
}

/// Where the roots of the trust domain come from.
#[derive(Debug, Clone)]
pub enum BundleSource {
    /// A PEM file; read again when it changes.
    File(PathBuf),
    /// The `ConfigMap` in which the issuer's replicas publish them.
    ConfigMap(Server, ObjectName),
}

/// Client of the embedded issuer, one connection to each replica for all workloads.
#[derive(Debug)]
pub struct Embedded {
    issuer: Replicas,
    agent_token: Reread<Secret>,
    audience: String,
    trust_domain: TrustDomain,
    clock: Clock,
}

impl Embedded {
    /// A client; it connects when it is first used.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let trust = match config.bundle {
            BundleSource::File(path) => Trust::file(path, config.clock),
            BundleSource::ConfigMap(server, object) => {
                Trust::watched(Arc::new(Api::new(server, Caller::Agent, config.clock)), object)
            }
        };
        Self {
            issuer: Replicas::new(config.address, trust, config.clock),
            agent_token: Reread::new("agent token", config.agent_token, config.clock, reread::token),
            audience: config.audience,
            trust_domain: config.trust_domain,
            clock: config.clock,
        }
    }

    /// Keeps the roots up to date until `shutdown`.
    pub async fn run(&self, shutdown: &CancellationToken) {
        self.issuer.run(shutdown).await;
    }

    /// The roots as they change; nothing where they are in a file.
    pub fn roots(&self) -> Option<watch::Receiver<Roots>> {
        self.issuer.roots()
    }

    /// Whether the issuer was reached when that was last tried; else why not.
    pub fn reached(&self) -> Result<(), String> {
        self.issuer.reached()
    }

    /// How the replicas of the issuer stand that are known.
    pub fn standing(&self) -> Standing {
        self.issuer.standing()
    }

    /// The time of all connections is over.
    #[cfg(test)]
    pub(crate) async fn age(&self) {
        self.issuer.age().await;
    }

    /// A new X.509-SVID with a new key for `workload`, verified.
    ///
    /// Proof is the token of `tokens` that is for our audience and has not ended; without one, the key of the
    /// `current` identity. With neither: [`Error::Unauthenticated`].
    pub async fn x509(
        &self,
        workload: &Workload,
        tokens: &[Token],
        current: Option<&Identity>,
    ) -> Result<Identity, Error> {
        let expected = self.expected(workload)?;
        let key = PrivateKey::generate().map_err(|problem| unavailable(problem.to_string()))?;
        let csr = request_for(&key)?;
        let proof = self.proof(workload, tokens, current, &csr)?;
        let by_token = matches!(proof, proof::Proof::Token(_));
        let proof = wire::Proof { proof: Some(proof) };
        let request = wire::SignRequest { workload: Some(wire_workload(workload)), proof: Some(proof), csr };
        let answer = self
            .call(request, async |mut client: IssuerClient<Channel>, request| client.sign(request).await)
            .await?;
        let now = self.clock.wall();
        let (not_before, not_after) =
            verify_x509(&answer.chain, &answer.roots, &expected, &key.public_key_info(), now)
                .map_err(|broken| unusable("X.509-SVID", &broken))?;
        let key = key.to_pkcs8().map_err(|problem| unavailable(problem.to_string()))?;
        Ok(Identity {
            spiffe_id: expected.clone(),
            x509: Arc::new(X509Svid {
                spiffe_id: expected,
                chain: answer.chain,
                key,
                roots: answer.roots,
                federated: BTreeMap::new(),
                not_before,
                not_after,
            }),
            renew_at: renew_at(not_before, not_after, rand::random()),
            ticket: Ticket { text: answer.ticket, by_token },
        })
    }

    /// A new JWT-SVID of `workload` for `audience`, verified.
    ///
    /// Proof is the key of an `identity` that a token has proved: so a token is reviewed once for an identity, and not
    /// again for every JWT-SVID of it. They are renewed every few minutes, the identity at half of its life; then the
    /// token of that moment is reviewed, and a pod that is gone gets nothing more. Otherwise, and where the issuer does
    /// not take the key's word, proof is as in [`Self::x509`].
    pub async fn jwt(
        &self,
        workload: &Workload,
        tokens: &[Token],
        identity: &Identity,
        audience: &str,
    ) -> Result<JwtSvid, Error> {
        let expected = self.expected(workload)?;
        let now = self.clock.unix();
        let first = if identity.ticket.by_token && unix(identity.x509.not_after) > now {
            Self::renewal(identity, now, audience.as_bytes())?
        } else {
            self.proof(workload, tokens, Some(identity), audience.as_bytes())?
        };
        let by_key = matches!(first, proof::Proof::Renewal(_));
        let mut answer = self.mint(workload, first, audience).await;
        if by_key
            && let Err(Error::IdentityRefused { .. } | Error::Unauthenticated { .. }) = answer
            && let Some(token) = self.token(tokens)
        {
            answer = self.mint(workload, token, audience).await;
        }
        let answer = answer?;
        let token = Secret::from(answer.token);
        let now = self.clock.wall();
        let expires =
            verify_jwt(&token, &expected, audience, now).map_err(|broken| unusable("JWT-SVID", &broken))?;
        Ok(JwtSvid { token, expires, renew_at: renew_at(now, expires, rand::random()) })
    }

    async fn mint(
        &self,
        workload: &Workload,
        proof: proof::Proof,
        audience: &str,
    ) -> Result<wire::MintJwtResponse, Error> {
        let request = wire::MintJwtRequest {
            workload: Some(wire_workload(workload)),
            proof: Some(wire::Proof { proof: Some(proof) }),
            audience: audience.to_owned(),
        };
        self.call(request, async |mut client: IssuerClient<Channel>, request| client.mint_jwt(request).await)
            .await
    }

    fn expected(&self, workload: &Workload) -> Result<SpiffeId, Error> {
        self.trust_domain.service_account(&workload.namespace, &workload.service_account).map_err(|problem| {
            refused(format!("pod {workload} with service account {:?}: {problem}", workload.service_account))
        })
    }

    /// The end of the token that is for our audience, and the token.
    fn ours<'t>(&self, tokens: &'t [Token]) -> Option<(&'t Token, Option<i64>)> {
        let ours = tokens.iter().find(|token| token.audience == self.audience)?;
        Some((ours, glance(&ours.token).and_then(|claims| claims.exp)))
    }

    /// The token as proof, if there is a good one.
    fn token(&self, tokens: &[Token]) -> Option<proof::Proof> {
        let (token, ends) = self.ours(tokens)?;
        let text = std::str::from_utf8(token.token.expose()).unwrap_or_default();
        (ends? > self.clock.unix() + TOKEN_MARGIN).then(|| proof::Proof::Token(text.to_owned()))
    }

    /// The token if there is a good one, else a signature by the key in use.
    fn proof(
        &self,
        workload: &Workload,
        tokens: &[Token],
        current: Option<&Identity>,
        subject: &[u8],
    ) -> Result<proof::Proof, Error> {
        let now = self.clock.unix();
        if let Some(token) = self.token(tokens) {
            return Ok(token);
        }
        let living = current.filter(|current| unix(current.x509.not_after) > now);
        if let Some(current) = living {
            return Self::renewal(current, now, subject);
        }
        let token = match self.ours(tokens) {
            None => format!(
                "kubelet brought no token for audience {:?}; the CSIDriver's tokenRequests must name it",
                self.audience
            ),
            Some((_, None)) => "kubelet's token is no JWT with an exp claim".to_owned(),
            Some((_, Some(ends))) => {
                format!("kubelet's token ended {} s ago", now.saturating_sub(ends).max(0))
            }
        };
        let identity = match current {
            None => "there is no identity yet to renew by its key",
            Some(_) => "the identity in use has ended too",
        };
        Err(Error::Unauthenticated {
            problem: format!(
                "pod {workload}: {token}, and {identity}; kubelet's next republish brings a new token"
            ),
        })
    }

    fn renewal(current: &Identity, signed_at: i64, subject: &[u8]) -> Result<proof::Proof, Error> {
        let message = renewal::message(&current.ticket.text, signed_at, subject);
        let signature = PrivateKey::from_der(current.x509.key.expose())
            .and_then(|key| key.sign_message(&message))
            .map_err(|problem| unavailable(problem.to_string()))?;
        let renewal = wire::Renewal { ticket: current.ticket.text.clone(), signed_at, signature };
        Ok(proof::Proof::Renewal(renewal))
    }

    /// Calls the issuer with the agent's own token.
    async fn call<Q: Clone, A, F>(
        &self,
        message: Q,
        call: impl Fn(IssuerClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let token = self.agent_token.current().await.map_err(|error| {
            unavailable(format!("{error}; it is the agent's own projected token for {:?}", self.audience))
        })?;
        let text = std::str::from_utf8(token.expose()).unwrap_or_default();
        let mut bearer: tonic::metadata::AsciiMetadataValue = format!("Bearer {text}")
            .parse()
            .map_err(|_| unavailable("the agent token can't be sent: it has odd characters"))?;
        // Keeps the token out of the header compression's table and out of anybody's Debug.
        bearer.set_sensitive(true);
        let ask = |channel| {
            let mut request = Request::new(message.clone());
            request.metadata_mut().insert("authorization", bearer.clone());
            request.set_timeout(DEADLINE);
            call(IssuerClient::new(channel), request)
        };
        match self.issuer.call(ask).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(Unanswered::Unreached(problem) | Unanswered::Unable(problem)) => Err(unavailable(problem)),
            Err(Unanswered::Refused(status)) => Err(refusal(&status)),
        }
    }
}

/// A CSR without names: the issuer would ignore them.
fn request_for(key: &PrivateKey) -> Result<Vec<u8>, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params
        .serialize_request(key)
        .map_err(|problem| unavailable(format!("no signing request could be made: {problem}")))?;
    Ok(csr.der().to_vec())
}

fn wire_workload(workload: &Workload) -> wire::Workload {
    wire::Workload {
        namespace: workload.namespace.clone(),
        pod_name: workload.pod_name.clone(),
        pod_uid: workload.pod_uid.clone(),
        service_account: workload.service_account.clone(),
    }
}
