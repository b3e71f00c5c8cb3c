//! What a file holds, and what of stores and issuers that takes.

use std::collections::BTreeMap;

use super::Reference;
use crate::spiffe::TrustDomain;

/// What a file holds.
#[derive(Debug)]
pub enum Content {
    /// One secret, or one field of it.
    Secret(Reference),
    /// A rendered template.
    Template(Template),
    /// The X.509-SVID: leaf and intermediates, PEM.
    X509Chain,
    /// The X.509-SVID's private key: PKCS#8, PEM.
    X509Key,
    /// The trust bundle of the pod's own trust domain: PEM.
    X509Bundle,
    /// The private key, and after it leaf and intermediates: PEM.
    X509Pair,
    /// Leaf and intermediates: DER, one after another.
    X509ChainDer,
    /// The private key: PKCS#8, DER.
    X509KeyDer,
    /// The trust bundle of the pod's own trust domain: DER, one after another.
    X509BundleDer,
    /// The trust bundle of the pod's own trust domain: a Java key store of trusted certificates.
    X509BundleJks,
    /// The private key, and leaf and intermediates: PKCS#12.
    X509Pkcs12,
    /// The trust bundle of the pod's own trust domain: PKCS#12 of trusted certificates.
    X509BundlePkcs12,
    /// The trust bundle of this trust domain, and of no other: PEM.
    Bundle {
        /// Whose.
        trust_domain: TrustDomain,
        /// Without it, the file is left out instead of keeping the pod waiting.
        optional: bool,
    },
    /// The bundle of every trust domain that the pod is to know: PEM, a file for each beside the one that is named here
    /// (draft SPIFFE Filesystem Delivery).
    BundleFiles,
    /// A JWT-SVID for this audience, without a line end.
    Jwt {
        /// The audience.
        audience: String,
    },
}

/// A template's source, already known to parse and to use nothing that is not there.
#[derive(Debug)]
pub struct Template {
    /// The text. Written by the pod's author; no secret.
    pub source: String,
    /// The references that every rendering asks for, each source once; a branch that depends on a secret's value
    /// may ask for more when it is rendered.
    pub references: Vec<Reference>,
    /// Every reference of every branch, by the text that stands in `secret("…")`.
    pub(crate) calls: BTreeMap<String, Reference>,
}

impl Content {
    /// The references that every turn needs.
    pub(super) fn references(&self) -> &[Reference] {
        match self {
            Self::Secret(reference) => std::slice::from_ref(reference),
            Self::Template(template) => &template.references,
            Self::X509Chain
            | Self::X509Key
            | Self::X509Bundle
            | Self::X509Pair
            | Self::X509ChainDer
            | Self::X509KeyDer
            | Self::X509BundleDer
            | Self::X509BundleJks
            | Self::X509Pkcs12
            | Self::X509BundlePkcs12
            | Self::Bundle { .. }
            | Self::BundleFiles
            | Self::Jwt { .. } => &[],
        }
    }

    /// All of its references, those in branches of a template too.
    pub(crate) fn calls(&self) -> Vec<&Reference> {
        if let Self::Template(template) = self {
            template.calls.values().collect()
        } else {
            self.references().iter().collect()
        }
    }

    /// The audience of the JWT-SVID that it is.
    pub(super) fn audience(&self) -> Option<&str> {
        if let Self::Jwt { audience } = self { Some(audience) } else { None }
    }
}
