//! What can be wrong with an SVID.

use crate::spiffe::{SpiffeId, SpiffeIdError, TrustDomain};

/// The rule an SVID breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// There is no certificate.
    #[error("no certificate came")]
    Empty,
    /// Bytes that are no certificate, or more than one in an element.
    #[error("{which} is no DER certificate")]
    Der {
        /// The leaf, an intermediate or a root.
        which: &'static str,
    },
    /// An extension appears twice or can't be read.
    #[error("{which} has a {extension} extension that is doubled or malformed")]
    Extension {
        /// The leaf, an intermediate or a root.
        which: &'static str,
        /// Its name.
        extension: &'static str,
    },
    /// Not one URI name.
    #[error("the leaf has {found} URI names instead of exactly one")]
    UriNames {
        /// How many there are.
        found: usize,
    },
    /// Names that may be overlooked, and no other.
    #[error("the leaf has no subject, and its subject alternative name is not critical")]
    NamesNotCritical,
    /// A URI name that is no SPIFFE ID.
    #[error("the URI name is no SPIFFE ID: {problem}")]
    NoSpiffeId {
        /// What is wrong with it.
        problem: SpiffeIdError,
    },
    /// The ID of a trust domain, which no workload has.
    #[error("{0} has no path, so it names a trust domain and no workload")]
    NoPath(SpiffeId),
    /// Another trust domain's.
    #[error("it is of trust domain {found} instead of {expected}")]
    TrustDomain {
        /// Its trust domain.
        found: TrustDomain,
        /// Ours.
        expected: TrustDomain,
    },
    /// Another workload's.
    #[error("it is for {found} instead of {expected}")]
    AnotherId {
        /// Its ID.
        found: SpiffeId,
        /// The one asked for.
        expected: SpiffeId,
    },
    /// A leaf that is an authority.
    #[error("the leaf is a certificate authority")]
    LeafIsAuthority,
    /// Key usage is missing, not critical, or without what the SVID needs.
    #[error("the leaf's key usage must be critical and have digitalSignature")]
    KeyUsage,
    /// Key usage of an authority in a leaf.
    #[error("the leaf's key usage has keyCertSign or cRLSign")]
    SigningUsage,
    /// Extended key usage is there, and lacks one of the two.
    #[error("the leaf's extended key usage must have serverAuth and clientAuth")]
    ExtendedKeyUsage,
    /// Bytes that are no private key.
    #[error("the private key is no PKCS#8 key of a known kind")]
    NoKey,
    /// Somebody else's key.
    #[error("the leaf is for another key")]
    AnotherKey,
    /// An intermediate or root that may not sign certificates.
    #[error("{which} is no certificate authority with critical keyCertSign")]
    NotAuthority {
        /// An intermediate or a root.
        which: &'static str,
    },
    /// An authority with a workload's name.
    #[error("{which} has a SPIFFE ID with a path, or of another trust domain")]
    AuthorityName {
        /// An intermediate or a root.
        which: &'static str,
    },
    /// Not valid now.
    #[error("it is valid from Unix time {from} to {to}, and it is {now}")]
    Time {
        /// Begin, Unix seconds.
        from: i64,
        /// End, Unix seconds.
        to: i64,
        /// Now, Unix seconds.
        now: i64,
    },
    /// No path from leaf to root.
    #[error("its chain does not lead to a root of the bundle: {0}")]
    Chain(String),
    /// No root to lead to.
    #[error("no root came for trust domain {0}")]
    NoRoots(TrustDomain),
    /// A trust domain's bundle under a name that is none.
    #[error("a bundle is for {name:?}, which is no trust domain's SPIFFE ID")]
    BundleName {
        /// The name, cut short.
        name: String,
    },
    /// No JWT.
    #[error("it is no JWT")]
    Jwt,
    /// A JOSE header that is not allowed.
    #[error("its header must have an asymmetric alg, a kid, and JWT or JOSE as typ if any")]
    Header,
    /// A JWT for others.
    #[error("its audience is not exactly the one asked for")]
    Audience,
    /// A JWT for another workload.
    #[error("its subject is not {0}")]
    Subject(SpiffeId),
    /// A JWT without end, or past it.
    #[error("it has no exp claim, or is past it")]
    Expired,
    /// A JWT that says it was signed by a key nobody has told of.
    #[error("no key of trust domain {domain}'s bundle has its kid {kid:?}")]
    UnknownKey {
        /// The trust domain.
        domain: TrustDomain,
        /// The key's name, cut short.
        kid: String,
    },
    /// A JWT that the key it names has not signed.
    #[error("its signature is not by the key that it names")]
    Signature,
}
