//! The calls: admit, then write what was admitted.

use std::sync::Arc;

use countersign_proto::issuer::issuer_server::Issuer;
use countersign_proto::issuer::{MintJwtRequest, MintJwtResponse, SignRequest, SignResponse};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::identity::svid::unix;
use crate::issuer::admit::Gate;
use crate::issuer::config::Config;
use crate::issuer::jwt::{Audience, PublicJwk, mint};
use crate::issuer::keys::{Generation, Keys};
use crate::issuer::metrics::Metrics;
use crate::issuer::refusal::Refusal;
use crate::issuer::root::uri;
use crate::issuer::sign::{Requested, leaf};
use crate::issuer::ticket;
use crate::secret::Secret;

/// The gRPC service.
pub(crate) struct Service {
    pub(crate) config: Arc<Config>,
    pub(crate) gate: Gate,
    pub(crate) keys: Arc<Keys>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Service {
    async fn signed(&self, caller: &Secret, request: SignRequest) -> Result<SignResponse, Refusal> {
        let SignRequest { workload, proof, csr } = request;
        // Cheap, and a request that can't be served needs no review.
        let requested = Requested::parse(&csr)?;
        let admitted = self.gate.admit(caller, workload, proof, &csr).await?;
        let now = self.config.clock.wall();
        let generation = self.signing()?;
        let name = uri(admitted.spiffe_id.as_str()).map_err(|error| Refusal::Signing(error.to_string()))?;
        let signed = leaf(&generation.root, &requested, vec![name], now, self.config.x509_ttl)?;
        let key = PublicJwk::of(&requested.public_key_info)
            .ok_or_else(|| Refusal::Signing("the key has no JWK form".to_owned()))?;
        let expires_at = unix(signed.not_after);
        let ticket = ticket::write(&generation.jwt, &admitted, key, unix(now), expires_at)?;
        tracing::info!(
            spiffe_id = %admitted.spiffe_id,
            pod = %format_args!("{}/{}", admitted.pod.namespace, admitted.pod.name),
            pod_uid = %admitted.pod.uid,
            node = %admitted.node,
            by = admitted.by,
            serial = %signed.serial,
            expires_at,
            "issued an X.509-SVID"
        );
        self.metrics.issued("x509");
        Ok(SignResponse {
            spiffe_id: admitted.spiffe_id.to_string(),
            chain: vec![signed.der],
            roots: self.keys.roots(),
            ticket,
        })
    }

    async fn minted(&self, caller: &Secret, request: MintJwtRequest) -> Result<MintJwtResponse, Refusal> {
        let MintJwtRequest { workload, proof, audience } = request;
        let parsed = Audience::parse(&audience, &self.config.audience)?;
        let admitted = self.gate.admit(caller, workload, proof, audience.as_bytes()).await?;
        let generation = self.signing()?;
        let minted = mint(
            &generation.jwt,
            &admitted.spiffe_id,
            &parsed,
            self.config.oidc_issuer.as_deref(),
            self.config.clock.wall(),
            self.config.jwt_ttl,
        )?;
        tracing::info!(
            spiffe_id = %admitted.spiffe_id,
            pod = %format_args!("{}/{}", admitted.pod.namespace, admitted.pod.name),
            pod_uid = %admitted.pod.uid,
            node = %admitted.node,
            by = admitted.by,
            audience,
            jti = %minted.jti,
            expires_at = minted.expires_at,
            "issued a JWT-SVID"
        );
        self.metrics.issued("jwt");
        let token = String::from_utf8_lossy(minted.token.expose()).into_owned();
        Ok(MintJwtResponse { token, expires_at: minted.expires_at })
    }

    fn signing(&self) -> Result<Arc<Generation>, Refusal> {
        self.keys.signing(self.config.clock.wall()).ok_or(Refusal::NotPublished)
    }

    fn answer<T>(&self, result: Result<T, Refusal>) -> Result<Response<T>, Status> {
        result.map(Response::new).map_err(|refusal| {
            tracing::warn!(reason = refusal.label(), %refusal, "refused a call");
            self.metrics.refused(&refusal);
            refusal.into()
        })
    }
}

#[tonic::async_trait]
impl Issuer for Service {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let caller = bearer(request.metadata());
        self.answer(self.signed(&caller, request.into_inner()).await)
    }

    async fn mint_jwt(&self, request: Request<MintJwtRequest>) -> Result<Response<MintJwtResponse>, Status> {
        let caller = bearer(request.metadata());
        self.answer(self.minted(&caller, request.into_inner()).await)
    }
}

/// The caller's token (RFC 6750 §2.1); empty if there is none, which the review then says.
fn bearer(metadata: &MetadataMap) -> Secret {
    let value =
        metadata.get("authorization").map(tonic::metadata::MetadataValue::as_bytes).unwrap_or_default();
    let token = match value.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
        Some(_) | None => b"",
    };
    Secret::new(token.to_vec())
}
