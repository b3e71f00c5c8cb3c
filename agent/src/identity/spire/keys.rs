//! The keys that sign a trust domain's JWT-SVIDs, as SPIRE tells them, and whether one of them has signed a token.

use std::collections::HashMap;
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::answer::{refused, unavailable};
use super::material::short;
use crate::Error;
use crate::identity::svid::Broken;
use crate::secret::Secret;
use crate::spiffe::TrustDomain;

/// How long a key that signed a token may be on its way to us: SPIRE makes it known well before it signs with it.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// The keys of one trust domain, kept up to date by whoever follows SPIRE's bundles.
#[derive(Debug)]
pub(super) struct Keys {
    domain: TrustDomain,
    known: watch::Sender<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// None: SPIRE has not told any yet.
    keys: Option<KeySet>,
    trouble: Option<String>,
}

/// Keys by name, with what each may sign by.
#[derive(Default)]
struct KeySet(HashMap<String, (DecodingKey, &'static [Algorithm])>);

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl Keys {
    pub(super) fn new(domain: TrustDomain) -> Self {
        Self { domain, known: watch::Sender::default() }
    }

    /// Takes in JWK Sets by their trust domains' SPIFFE IDs: ours replaces what was known, others do not matter here.
    pub(super) fn learn(&self, bundles: &HashMap<String, Vec<u8>>) {
        let name = format!("spiffe://{}", self.domain);
        match bundles.get(&name).map(|json| KeySet::parse(json)) {
            Some(Some(keys)) => {
                info!(trust_domain = %self.domain, ?keys, "SPIRE has told the keys of JWT-SVIDs");
                self.known.send_replace(Known { keys: Some(keys), trouble: None });
            }
            Some(None) => self.trouble("what SPIRE sent is no JWK Set"),
            None => self.trouble("SPIRE sent no JWT bundle of this trust domain"),
        }
    }

    /// Notes why nothing new is known. The last keys stay.
    pub(super) fn trouble(&self, trouble: &str) {
        self.known.send_if_modified(|known| {
            if known.trouble.as_deref() == Some(trouble) {
                return false;
            }
            warn!(trust_domain = %self.domain, trouble, "the keys of JWT-SVIDs can't be followed");
            known.trouble = Some(trouble.to_owned());
            true
        });
    }

    /// Whether a key of the trust domain has signed `token` (JWT-SVID §5.1). A key that is not known may be on its way,
    /// and is waited for.
    ///
    /// # Errors
    /// [`Error::IdentityRefused`] for a wrong signature; [`Error::IdentityUnavailable`] for an unknown key.
    pub(super) async fn vouch(&self, token: &Secret, now: Instant) -> Result<(), Error> {
        let mut known = self.known.subscribe();
        let until = now + ON_ITS_WAY;
        loop {
            let unknown = {
                let known = known.borrow_and_update();
                let trouble = known.trouble.as_deref().map_or_else(String::new, |why| format!("; {why}"));
                match known.keys.as_ref().map(|keys| keys.verify(token, &self.domain)) {
                    Some(Ok(())) => return Ok(()),
                    Some(Err(broken @ Broken::UnknownKey { .. })) => unavailable(format!(
                        "the JWT-SVID that SPIRE sent can't be used yet: {broken}{trouble}"
                    )),
                    Some(Err(broken)) => {
                        return Err(refused(format!("the JWT-SVID that SPIRE sent can't be used: {broken}")));
                    }
                    None => unavailable(format!(
                        "the keys that sign JWT-SVIDs of {} are not known yet{trouble}",
                        self.domain
                    )),
                }
            };
            match timeout_at(until, known.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(unknown),
            }
        }
    }
}

impl KeySet {
    /// The keys in a JWK Set (RFC 7517 §5) that may sign JWT-SVIDs; none if it is no such thing. What is not understood is
    /// skipped, as SPIFFE Trust Domain and Bundle §4.2 has it.
    fn parse(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json).ok()?;
        let mut keys = HashMap::new();
        for key in set.keys {
            let Ok(key) = serde_json::from_value::<Jwk>(key) else { continue };
            let for_jwts = match &key.common.public_key_use {
                // SPIRE's agent leaves it out.
                None => true,
                Some(PublicKeyUse::Other(usage)) => usage == "jwt-svid",
                Some(PublicKeyUse::Signature | PublicKeyUse::Encryption) => false,
            };
            let (Some(kid), Ok(decoding)) = (&key.common.key_id, DecodingKey::from_jwk(&key)) else {
                continue;
            };
            if for_jwts && !algorithms(&key).is_empty() {
                keys.entry(kid.clone()).or_insert((decoding, algorithms(&key)));
            }
        }
        Some(Self(keys))
    }

    fn verify(&self, token: &Secret, domain: &TrustDomain) -> Result<(), Broken> {
        let header = decode_header(token.expose()).map_err(|_| Broken::Jwt)?;
        let kid = header.kid.ok_or(Broken::Header)?;
        let unknown = || Broken::UnknownKey { domain: domain.clone(), kid: short(&kid) };
        let (key, algorithms) = self.0.get(&kid).ok_or_else(unknown)?;
        // By the key's kind, so that a token can't choose.
        if !algorithms.contains(&header.alg) {
            return Err(Broken::Signature);
        }
        let mut validation = Validation::new(header.alg);
        // The claims are looked at elsewhere, by our clock.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        decode::<IgnoredAny>(token.expose(), key, &validation).map(drop).map_err(|_| Broken::Signature)
    }
}

/// What a key may sign by (JWT-SVID §2.1).
fn algorithms(key: &Jwk) -> &'static [Algorithm] {
    if let AlgorithmParameters::RSA(_) = &key.algorithm {
        return &[
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ];
    }
    let AlgorithmParameters::EllipticCurve(parameters) = &key.algorithm else { return &[] };
    if parameters.curve == EllipticCurve::P256 {
        &[Algorithm::ES256]
    } else if parameters.curve == EllipticCurve::P384 {
        &[Algorithm::ES384]
    } else {
        &[]
    }
}

#[cfg(test)]
mod tests;
