//! A trust domain that signs what a test wants signed.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, Header, encode};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};

use serde_json::json;

use crate::identity::key::PrivateKey;
use crate::issuer::jwt::JwtKey;

/// A root of `domain`, its key, and the key of its JWT-SVIDs.
pub(crate) struct Authority {
    domain: String,
    root: Issuer<'static, PrivateKey>,
    jwt_key: JwtKey,
    pub(crate) root_der: Vec<u8>,
}

/// An SVID with its key, as SPIRE sends them.
#[derive(Debug, Clone)]
pub(crate) struct Signed {
    pub(crate) id: String,
    pub(crate) chain: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) bundle: Vec<u8>,
}

impl Authority {
    pub(crate) fn new(domain: &str) -> Self {
        let mut params = params(&format!("spiffe://{domain}"));
        params.distinguished_name.push(DnType::OrganizationName, domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let key = PrivateKey::generate().unwrap();
        let root_der = params.self_signed(&key).unwrap().der().to_vec();
        let jwt_key = JwtKey::new(&PrivateKey::generate().unwrap()).unwrap();
        Self { domain: domain.to_owned(), root: Issuer::new(params, key), jwt_key, root_der }
    }

    /// An SVID that lives from 10 s before `now` for `life`.
    pub(crate) fn svid(&self, id: &str, now: SystemTime, life: Duration) -> Signed {
        self.svid_with(id, now, life, |_| {})
    }

    /// The same, but for a change.
    pub(crate) fn svid_with(
        &self,
        id: &str,
        now: SystemTime,
        life: Duration,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Signed {
        let mut params = params(id);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let since = now.duration_since(UNIX_EPOCH).unwrap();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + since.saturating_sub(Duration::from_secs(10));
        params.not_after = epoch + since + life;
        change(&mut params);
        let key = PrivateKey::generate().unwrap();
        let chain = params.signed_by(&key, &self.root).unwrap().der().to_vec();
        let key = key.to_pkcs8().unwrap().expose().to_vec();
        Signed { id: id.to_owned(), chain, key, bundle: self.root_der.clone() }
    }
}

impl Authority {
    /// A JWT-SVID.
    pub(crate) fn jwt(&self, id: &str, audience: &str, expires: SystemTime) -> String {
        let expires = expires.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.jwt_key.kid().to_owned());
        let claims = json!({"sub": id, "aud": [audience], "exp": expires});
        encode(&header, &claims, self.jwt_key.encoding()).unwrap()
    }

    /// Its JWT keys as SPIRE's agent tells them: a JWK Set by the trust domain's SPIFFE ID.
    pub(crate) fn jwt_bundles(&self) -> HashMap<String, Vec<u8>> {
        let mut key = serde_json::to_value(self.jwt_key.public()).unwrap();
        key["kid"] = self.jwt_key.kid().into();
        let set = serde_json::to_vec(&json!({ "keys": [key] })).unwrap();
        HashMap::from([(format!("spiffe://{}", self.domain), set)])
    }
}

fn params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params
}
