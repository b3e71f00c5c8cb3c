//! Identities from the embedded issuer: the key is made here and never leaves the node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_proto::issuer::issuer_client::IssuerClient;
use countersign_proto::issuer::{self as wire, proof};
use rcgen::{CertificateParams, DistinguishedName};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::Error;
use crate::clock::Clock;
use crate::identity::channel::IssuerChannel;
use crate::identity::key::PrivateKey;
use crate::identity::renewal::{self, renew_at};
use crate::identity::reread::{self, Reread};
use crate::identity::svid::{Broken, unix, verify_jwt, verify_x509};
use crate::identity::token::glance;
use crate::identity::{Identity, JwtSvid, Token, Workload, X509Svid};
use crate::secret::Secret;
use crate::spiffe::{SpiffeId, TrustDomain};

/// How long one call to the issuer may take, connecting included.
const DEADLINE: Duration = Duration::from_secs(10);
/// A token that ends sooner than this might end on the way.
const TOKEN_MARGIN: i64 = 5;

/// What the agent has to know of the issuer.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST:PORT`.
    pub address: String,
    /// PEM file with the roots of the trust domain; read again when it changes.
    pub bundle: PathBuf,
    /// File with the agent's own pod-bound token; read again when it changes.
    pub agent_token: PathBuf,
    /// The audience of that token and of the workloads' tokens.
    pub audience: String,
    /// The trust domain whose SVIDs are accepted.
    pub trust_domain: TrustDomain,
    /// Time.
    pub clock: Clock,
}

/// Client of the embedded issuer, one connection for all workloads.
#[derive(Debug)]
pub struct Embedded {
    issuer: IssuerChannel,
    agent_token: Reread<Secret>,
    audience: String,
    trust_domain: TrustDomain,
    clock: Clock,
}

impl Embedded {
    /// A client; it connects when it is first used.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            issuer: IssuerChannel::new(config.address, config.bundle, config.clock),
            agent_token: Reread::new("agent token", config.agent_token, config.clock, reread::token),
            audience: config.audience,
            trust_domain: config.trust_domain,
            clock: config.clock,
        }
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
        let request = wire::SignRequest { workload: Some(wire_workload(workload)), proof: Some(proof), csr };
        let (mut client, request) = self.call(request).await?;
        let answer = self.within_deadline(client.sign(request)).await?;
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
            ticket: answer.ticket,
        })
    }

    /// A new JWT-SVID of `workload` for `audience`, verified. Proof as in [`Self::x509`].
    pub async fn jwt(
        &self,
        workload: &Workload,
        tokens: &[Token],
        identity: &Identity,
        audience: &str,
    ) -> Result<JwtSvid, Error> {
        let expected = self.expected(workload)?;
        let proof = self.proof(workload, tokens, Some(identity), audience.as_bytes())?;
        let request = wire::MintJwtRequest {
            workload: Some(wire_workload(workload)),
            proof: Some(proof),
            audience: audience.to_owned(),
        };
        let (mut client, request) = self.call(request).await?;
        let token = Secret::from(self.within_deadline(client.mint_jwt(request)).await?.token);
        let now = self.clock.wall();
        let expires =
            verify_jwt(&token, &expected, audience, now).map_err(|broken| unusable("JWT-SVID", &broken))?;
        Ok(JwtSvid { token, expires, renew_at: renew_at(now, expires, rand::random()) })
    }

    fn expected(&self, workload: &Workload) -> Result<SpiffeId, Error> {
        self.trust_domain.service_account(&workload.namespace, &workload.service_account).map_err(|problem| {
            refused(format!("pod {workload} with service account {:?}: {problem}", workload.service_account))
        })
    }

    /// The token if there is a good one, else a signature by the key in use.
    fn proof(
        &self,
        workload: &Workload,
        tokens: &[Token],
        current: Option<&Identity>,
        subject: &[u8],
    ) -> Result<wire::Proof, Error> {
        let now = self.clock.unix();
        let ours = tokens.iter().find(|token| token.audience == self.audience);
        let ends = ours.and_then(|token| glance(&token.token)).and_then(|claims| claims.exp);
        if let (Some(token), Some(ends)) = (ours, ends)
            && ends > now + TOKEN_MARGIN
        {
            let text = std::str::from_utf8(token.token.expose()).unwrap_or_default().to_owned();
            return Ok(wire::Proof { proof: Some(proof::Proof::Token(text)) });
        }
        let living = current.filter(|current| unix(current.x509.not_after) > now);
        if let Some(current) = living {
            return Self::renewal(current, now, subject);
        }
        let token = match (ours, ends) {
            (None, _) => format!(
                "kubelet brought no token for audience {:?}; the CSIDriver's tokenRequests must name it",
                self.audience
            ),
            (Some(_), None) => "kubelet's token is no JWT with an exp claim".to_owned(),
            (Some(_), Some(ends)) => {
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

    fn renewal(current: &Identity, signed_at: i64, subject: &[u8]) -> Result<wire::Proof, Error> {
        let message = renewal::message(&current.ticket, signed_at, subject);
        let signature = PrivateKey::from_der(current.x509.key.expose())
            .and_then(|key| key.sign_message(&message))
            .map_err(|problem| unavailable(problem.to_string()))?;
        let renewal = wire::Renewal { ticket: current.ticket.clone(), signed_at, signature };
        Ok(wire::Proof { proof: Some(proof::Proof::Renewal(renewal)) })
    }

    /// The client, and the request with the agent's own token and its deadline.
    async fn call<T>(&self, message: T) -> Result<(IssuerClient<Channel>, Request<T>), Error> {
        let channel = self.issuer.channel().await.map_err(|error| unavailable(error.to_string()))?;
        let token = self.agent_token.current().await.map_err(|error| {
            unavailable(format!("{error}; it is the agent's own projected token for {:?}", self.audience))
        })?;
        let text = std::str::from_utf8(token.expose()).unwrap_or_default();
        let mut bearer: tonic::metadata::AsciiMetadataValue = format!("Bearer {text}")
            .parse()
            .map_err(|_| unavailable("the agent token can't be sent: it has odd characters"))?;
        // Keeps the token out of the header compression's table and out of anybody's Debug.
        bearer.set_sensitive(true);
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", bearer);
        request.set_timeout(DEADLINE);
        Ok((IssuerClient::new(channel), request))
    }

    async fn within_deadline<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(DEADLINE, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.refusal(&status)),
            Err(_) => Err(unavailable(format!(
                "the issuer at {} did not answer within {} s",
                self.issuer.address(),
                DEADLINE.as_secs()
            ))),
        }
    }

    /// The issuer's codes become ours: who can heal it decides.
    fn refusal(&self, status: &Status) -> Error {
        let address = self.issuer.address();
        match status.code() {
            Code::Unauthenticated => {
                Error::Unauthenticated { problem: format!("the issuer refuses: {}", status.message()) }
            }
            Code::PermissionDenied
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented => refused(format!("the issuer refuses: {}", status.message())),
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::DataLoss => unavailable(format!("the issuer at {address}: {}", innermost(status))),
        }
    }
}

/// The last cause of a status: "connection refused" says more than "transport error".
pub(super) fn innermost(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut text = None;
    while let Some(error) = cause {
        text = Some(error.to_string());
        cause = error.source();
    }
    text.unwrap_or_else(|| status.message().to_owned())
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

fn unavailable(problem: impl Into<String>) -> Error {
    Error::IdentityUnavailable { problem: problem.into() }
}

fn refused(problem: impl Into<String>) -> Error {
    Error::IdentityRefused { problem: problem.into() }
}

fn unusable(what: &str, broken: &Broken) -> Error {
    refused(format!("the {what} that the issuer sent can't be used: {broken}"))
}
