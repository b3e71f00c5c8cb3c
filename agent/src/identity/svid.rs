//! The rules an SVID must keep before it is used (X509-SVID §§2-5, JWT-SVID §§2-3, RFC 5280 §6).

mod broken;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::Algorithm;
use jsonwebtoken::dangerous::insecure_decode;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use serde::Deserialize;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

pub use broken::Broken;

use crate::identity::token::Audiences;
use crate::secret::Secret;
use crate::spiffe::{SpiffeId, TrustDomain};

pub(crate) const LEAF: &str = "the leaf";
const INTERMEDIATE: &str = "an intermediate";
pub(crate) const ROOT: &str = "a root";

/// Checks an X.509-SVID for `expected` and the key with `public_key_info`, at `now`; answers when it begins and
/// ends.
pub(crate) fn verify_x509(
    chain: &[Vec<u8>],
    roots: &[Vec<u8>],
    expected: &SpiffeId,
    public_key_info: &[u8],
    now: SystemTime,
) -> Result<(SystemTime, SystemTime), Broken> {
    let leaf = parse(chain.first().ok_or(Broken::Empty)?, LEAF)?;
    let found = name(&leaf, expected.trust_domain())?;
    if found != *expected {
        return Err(Broken::AnotherId { found, expected: expected.clone() });
    }
    check_leaf_usage(&leaf)?;
    if leaf.public_key().raw != public_key_info {
        return Err(Broken::AnotherKey);
    }
    check_life(&leaf, chain, roots, expected.trust_domain(), now)
}

/// Checks the X.509-SVID that a peer shows in a TLS handshake, which proves its key, at `now`; answers who it is.
pub(crate) fn verify_peer(
    chain: &[Vec<u8>],
    roots: &[Vec<u8>],
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<SpiffeId, Broken> {
    let leaf = parse(chain.first().ok_or(Broken::Empty)?, LEAF)?;
    let found = name(&leaf, domain)?;
    check_leaf_usage(&leaf)?;
    check_life(&leaf, chain, roots, domain, now)?;
    Ok(found)
}

/// Checks the roots of one trust domain (X509-SVID §4): each may sign, and none has another domain's name.
pub(crate) fn verify_roots(roots: &[Vec<u8>], domain: &TrustDomain) -> Result<(), Broken> {
    roots.iter().try_for_each(|der| check_authority(&parse(der, ROOT)?, ROOT, domain))
}

/// Takes DER certificates apart that follow each other without anything between them, as the SPIFFE APIs send
/// chains and bundles.
pub(crate) fn certificates(mut ders: &[u8], which: &'static str) -> Result<Vec<Vec<u8>>, Broken> {
    let mut certificates = Vec::new();
    while !ders.is_empty() {
        let (rest, _) = X509Certificate::from_der(ders).map_err(|_| Broken::Der { which })?;
        let length = ders.len().saturating_sub(rest.len());
        certificates.push(ders.get(..length).unwrap_or_default().to_vec());
        ders = rest;
    }
    Ok(certificates)
}

/// The chain of `leaf` at `now`: who signs may sign, it leads to a root, and it is neither too early nor too late.
fn check_life(
    leaf: &X509Certificate<'_>,
    chain: &[Vec<u8>],
    roots: &[Vec<u8>],
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<(SystemTime, SystemTime), Broken> {
    let (leaf_der, intermediates) = chain.split_first().ok_or(Broken::Empty)?;
    for der in intermediates {
        check_authority(&parse(der, INTERMEDIATE)?, INTERMEDIATE, domain)?;
    }
    verify_roots(roots, domain)?;
    let (from, to) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    let seconds = unix(now);
    if seconds < from || seconds > to {
        return Err(Broken::Time { from, to, now: seconds });
    }
    check_chain(leaf_der, intermediates, roots, now)?;
    Ok((moment(from), moment(to)))
}

/// Whether `roots` are roots of `id`'s trust domain and vouch for `chain`, at `now`.
pub(crate) fn vouched_for(chain: &[Vec<u8>], roots: &[Vec<u8>], id: &SpiffeId, now: SystemTime) -> bool {
    let Some((leaf, intermediates)) = chain.split_first() else { return false };
    let fit = |der: &Vec<u8>| {
        parse(der, ROOT).and_then(|root| check_authority(&root, ROOT, id.trust_domain())).is_ok()
    };
    roots.iter().all(fit) && check_chain(leaf, intermediates, roots, now).is_ok()
}

fn parse<'a>(der: &'a [u8], which: &'static str) -> Result<X509Certificate<'a>, Broken> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(Broken::Der { which }),
    }
}

/// The URI names of a certificate.
fn uris<'a>(certificate: &'a X509Certificate<'_>, which: &'static str) -> Result<Vec<&'a str>, Broken> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| Broken::Extension { which, extension: "subject alternative name" })?;
    let uri = |name: &'a GeneralName<'_>| {
        if let GeneralName::URI(uri) = name { Some(*uri) } else { None }
    };
    Ok(names.map(|names| names.value.general_names.iter().filter_map(uri).collect()).unwrap_or_default())
}

/// The SPIFFE ID in a leaf, which must be of `domain`.
fn name(leaf: &X509Certificate<'_>, domain: &TrustDomain) -> Result<SpiffeId, Broken> {
    let uris = uris(leaf, LEAF)?;
    let [uri] = uris.as_slice() else {
        return Err(Broken::UriNames { found: uris.len() });
    };
    // RFC 5280 §4.2.1.6: whoever does not know the extension would take it for nobody's.
    let critical =
        leaf.subject_alternative_name().is_ok_and(|names| names.is_some_and(|names| names.critical));
    if leaf.subject().iter_rdn().next().is_none() && !critical {
        return Err(Broken::NamesNotCritical);
    }
    let id: SpiffeId = uri.parse().map_err(|problem| Broken::NoSpiffeId { problem })?;
    if id.path().is_empty() {
        return Err(Broken::NoPath(id));
    }
    if id.trust_domain() != domain {
        return Err(Broken::TrustDomain { found: id.trust_domain().clone(), expected: domain.clone() });
    }
    Ok(id)
}

fn check_leaf_usage(leaf: &X509Certificate<'_>) -> Result<(), Broken> {
    let bad = |extension| Broken::Extension { which: LEAF, extension };
    let constraints = leaf.basic_constraints().map_err(|_| bad("basic constraints"))?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(Broken::LeafIsAuthority);
    }
    let usage = leaf.key_usage().map_err(|_| bad("key usage"))?.ok_or(Broken::KeyUsage)?;
    if !usage.critical || !usage.value.digital_signature() {
        return Err(Broken::KeyUsage);
    }
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(Broken::SigningUsage);
    }
    let extended = leaf.extended_key_usage().map_err(|_| bad("extended key usage"))?;
    if extended.is_some_and(|extended| !extended.value.server_auth || !extended.value.client_auth) {
        return Err(Broken::ExtendedKeyUsage);
    }
    Ok(())
}

/// Checks a signing certificate (X509-SVID §§3.2, 4): the path validation of the TLS library does not look at
/// key usage or names.
pub(crate) fn check_authority(
    certificate: &X509Certificate<'_>,
    which: &'static str,
    domain: &TrustDomain,
) -> Result<(), Broken> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|_| Broken::Extension { which, extension: "basic constraints" })?;
    let usage = certificate.key_usage().map_err(|_| Broken::Extension { which, extension: "key usage" })?;
    let may_sign = usage.is_some_and(|usage| usage.critical && usage.value.key_cert_sign());
    if !constraints.is_some_and(|constraints| constraints.value.ca) || !may_sign {
        return Err(Broken::NotAuthority { which });
    }
    let ours = |uri: &&str| {
        uri.parse().is_ok_and(|id: SpiffeId| id.path().is_empty() && id.trust_domain() == domain)
    };
    let spiffe: Vec<_> =
        uris(certificate, which)?.into_iter().filter(|uri| uri.starts_with("spiffe:")).collect();
    if !spiffe.iter().all(ours) {
        return Err(Broken::AuthorityName { which });
    }
    Ok(())
}

fn check_chain(
    leaf: &[u8],
    intermediates: &[Vec<u8>],
    roots: &[Vec<u8>],
    now: SystemTime,
) -> Result<(), Broken> {
    let leaf = CertificateDer::from(leaf);
    let parsed = ParsedCertificate::try_from(&leaf).map_err(|error| Broken::Chain(error.to_string()))?;
    let mut anchors = RootCertStore::empty();
    for root in roots {
        anchors
            .add(CertificateDer::from(root.as_slice()))
            .map_err(|error| Broken::Chain(error.to_string()))?;
    }
    let intermediates: Vec<_> =
        intermediates.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    let algorithms = default_provider().signature_verification_algorithms;
    verify_server_cert_signed_by_trust_anchor(&parsed, &anchors, &intermediates, now, algorithms.all)
        .map_err(|error| Broken::Chain(error.to_string()))
}

/// JWT-SVID §2.1: nothing symmetric, and nothing else.
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    #[serde(default)]
    aud: Audiences,
    exp: Option<i64>,
}

/// Checks a JWT-SVID for `expected` and this one audience, at `now`; answers when it ends.
///
/// Its signature is not checked here. The embedded issuer minted the token for this very call, over a connection that it
/// authenticated with the trust domain's own root; what SPIRE sends is verified by its keys (`spire/keys`).
pub(crate) fn verify_jwt(
    token: &Secret,
    expected: &SpiffeId,
    audience: &str,
    now: SystemTime,
) -> Result<SystemTime, Broken> {
    let jwt = insecure_decode::<Claims>(token.expose()).map_err(|_| Broken::Jwt)?;
    let asymmetric = ALGORITHMS.contains(&jwt.header.alg);
    let typed = jwt.header.typ.as_deref().is_none_or(|typ| typ == "JWT" || typ == "JOSE");
    if !asymmetric || !typed || jwt.header.kid.as_deref().is_none_or(str::is_empty) {
        return Err(Broken::Header);
    }
    if jwt.claims.sub.as_deref() != Some(expected.as_str()) {
        return Err(Broken::Subject(expected.clone()));
    }
    let narrow = match &jwt.claims.aud {
        Audiences::One(one) => one == audience,
        Audiences::Many(many) => many.as_slice() == [audience],
    };
    if !narrow {
        return Err(Broken::Audience);
    }
    let ends = jwt.claims.exp.filter(|exp| *exp > unix(now)).ok_or(Broken::Expired)?;
    Ok(moment(ends))
}

pub(crate) fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

pub(crate) fn moment(unix: i64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(unix).unwrap_or(0))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
