//! From secrets to the bytes of files.
//!
//! Nothing here waits: what is not fetched yet is answered with [`Rendered::Needs`], and the caller comes again with
//! it. Bytes are put together in memory that is overwritten when it is given up; the one exception is the template
//! engine, whose own strings are freed as they are.

mod buffer;
mod encoding;
mod field;
mod filters;
mod jks;
mod json;
pub(crate) mod pem;
mod pkcs12;
mod template;
mod value;

use std::sync::Arc;

use crate::Error;
use crate::identity::{Identity, JwtSvid, X509Svid};
use crate::request::{Content, FilePath, FileSpec, Reference, Source};
use crate::secret::{Node, Secret, scrub_stack};
use crate::spiffe::TrustDomain;

/// What is at hand for rendering.
pub trait Material {
    /// What the store answered for `source`; none: it was not asked yet.
    fn secret(&self, source: &Source) -> Option<Result<Arc<Node>, Error>>;

    /// The pod's identity; none: there is none yet.
    fn identity(&self) -> Option<&Identity>;

    /// The pod's JWT-SVID for `audience`; none: it was not asked for yet.
    fn jwt(&self, audience: &str) -> Option<Result<Arc<JwtSvid>, Error>>;
}

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Rendered {
    /// Its bytes.
    File(Secret),
    /// Several files beside it, in its place.
    Files(Vec<(FilePath, Secret)>),
    /// It is optional, and its secret is not there.
    Omitted,
    /// These have to be fetched first. A template whose branches depend on values may ask several times, for other
    /// references each time.
    Needs(Vec<Reference>),
}

/// Renders one file, whose template may write up to `limit` bytes.
///
/// # Errors
/// What the store or identity source answered; [`Error::NotFound`] for a field that is not there, with the names of
/// those that are; [`Error::Template`] with the line; [`Error::Unusable`] for text that is not what the reference
/// says.
pub fn render(spec: &FileSpec, material: &impl Material, limit: u64) -> Result<Rendered, Error> {
    let bytes = match &spec.content {
        Content::Secret(reference) => return secret(reference, material),
        Content::Template(source) => {
            let rendered = template::render(&spec.key, source, material, limit);
            scrub_stack();
            return rendered;
        }
        Content::X509Chain => pem::certificates(&identity(material)?.x509.chain),
        Content::X509Key => pem::private_key(&identity(material)?.x509.key),
        Content::X509Bundle => pem::certificates(&identity(material)?.x509.roots),
        Content::X509Pair => {
            let svid = &identity(material)?.x509;
            pem::private_key_and_certificates(&svid.key, &svid.chain)
        }
        Content::X509ChainDer => Secret::new(identity(material)?.x509.chain.concat()),
        Content::X509KeyDer => identity(material)?.x509.key.duplicate(),
        Content::X509BundleDer => Secret::new(identity(material)?.x509.roots.concat()),
        Content::X509BundleJks => {
            let svid = &identity(material)?.x509;
            Secret::new(jks::truststore(svid.spiffe_id.trust_domain().as_str(), &svid.roots))
        }
        Content::X509Pkcs12 => {
            let svid = &identity(material)?.x509;
            pkcs12::keystore(&svid.key, &svid.chain).map_err(|_| Error::IdentityUnavailable {
                problem: "the x509-svid can't be written as PKCS#12".to_owned(),
            })?
        }
        Content::X509BundlePkcs12 => {
            let svid = &identity(material)?.x509;
            pkcs12::truststore(svid.spiffe_id.trust_domain().as_str(), &svid.roots)
        }
        Content::Bundle { trust_domain, optional } => match bundle(&identity(material)?.x509, trust_domain) {
            Ok(roots) => pem::certificates(roots),
            Err(_) if *optional => return Ok(Rendered::Omitted),
            Err(error) => return Err(error),
        },
        Content::BundleFiles => return Ok(Rendered::Files(bundles(&spec.path, &identity(material)?.x509))),
        Content::Jwt { audience } => match material.jwt(audience) {
            Some(svid) => svid?.token.duplicate(),
            None => {
                return Err(Error::IdentityUnavailable {
                    problem: format!("no jwt-svid for {audience} yet"),
                });
            }
        },
    };
    Ok(Rendered::File(bytes))
}

fn identity<M: Material>(material: &M) -> Result<&Identity, Error> {
    material.identity().ok_or_else(|| Error::IdentityUnavailable { problem: "no x509-svid yet".to_owned() })
}

/// A file for each trust domain. A domain whose name is too long for a file's has none.
fn bundles(beside: &FilePath, svid: &X509Svid) -> Vec<(FilePath, Secret)> {
    let own = (svid.spiffe_id.trust_domain(), &svid.roots);
    let all = std::iter::once(own).chain(&svid.federated);
    all.filter_map(|(domain, roots)| Some((beside.of_domain(domain)?, pem::certificates(roots)))).collect()
}

/// The roots of `domain` that came with an SVID.
fn bundle<'s>(svid: &'s X509Svid, domain: &TrustDomain) -> Result<&'s [Vec<u8>], Error> {
    if svid.spiffe_id.trust_domain() == domain {
        return Ok(&svid.roots);
    }
    svid.federated.get(domain).map(Vec::as_slice).ok_or_else(|| {
        let there: Vec<&str> = svid.federated.keys().map(TrustDomain::as_str).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Error::NotFound {
            reference: format!("trust domain {domain}"),
            problem: format!(
                "no bundle of it came with {}; its federated trust domains: {there}; let its \
                 registration entry federate with {domain}, or write {domain}?optional",
                svid.spiffe_id
            ),
        }
    })
}

fn secret(reference: &Reference, material: &impl Material) -> Result<Rendered, Error> {
    let Some(fetched) = material.secret(&reference.source) else {
        return Ok(Rendered::Needs(vec![reference.clone()]));
    };
    let rendered = fetched.and_then(|document| {
        let node = field::select(&document, reference)?;
        encoding::bytes(node, reference)
    });
    match rendered {
        Ok(bytes) => Ok(Rendered::File(bytes)),
        Err(Error::NotFound { .. }) if reference.optional => Ok(Rendered::Omitted),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
