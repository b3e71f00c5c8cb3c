//! From what a SPIFFE agent sends to an SVID that may be used: taken apart, chosen, and checked.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use countersign_proto::{broker, workload};
use tracing::warn;

use crate::identity::X509Svid;
use crate::identity::key::public_key_info_of;
use crate::identity::svid::{Broken, LEAF, ROOT, certificates, verify_roots, verify_x509};
use crate::secret::Secret;
use crate::spiffe::{SpiffeId, TrustDomain};

/// The longest hint (SPIFFE Workload API §5.2.1), in bytes.
const MAX_HINT: usize = 1024;

/// One SVID as it was sent, before anything is believed.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) spiffe_id: String,
    /// DER certificates, one after another.
    pub(super) chain: Vec<u8>,
    /// PKCS#8, DER.
    pub(super) key: Secret,
    /// DER roots, one after another.
    pub(super) bundle: Vec<u8>,
    pub(super) hint: String,
}

/// Everything that one message of a stream says of a workload: its whole state.
#[derive(Debug, Default)]
pub(super) struct Update {
    /// In the sender's order, the default first.
    pub(super) offers: Vec<Offer>,
    /// Roots of other trust domains, by SPIFFE ID: DER, one after another.
    pub(super) federated: HashMap<String, Vec<u8>>,
}

/// The Workload API and the Broker API send the same, under two names.
macro_rules! update_from {
    ($message:ty) => {
        impl From<$message> for Update {
            fn from(message: $message) -> Self {
                let offers = message.svids.into_iter().map(|svid| Offer {
                    spiffe_id: svid.spiffe_id,
                    chain: svid.x509_svid,
                    key: Secret::new(svid.x509_svid_key),
                    bundle: svid.bundle,
                    hint: svid.hint,
                });
                Self { offers: offers.collect(), federated: message.federated_bundles }
            }
        }
    };
}

update_from!(workload::X509svidResponse);
update_from!(broker::SubscribeToX509svidResponse);

/// Why an update cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    /// No SVID has the hint that was configured.
    #[error(
        "none of the SVIDs has the hint {wanted:?}; those sent have {}; set `hint` in the registration entry, or another svid.countersign.dev/hint or --spire-hint", found.join(", ")
    )]
    Hint {
        /// The configured one.
        wanted: String,
        /// Those that came, quoted.
        found: Vec<String>,
    },
    /// The SVID breaks a rule.
    #[error("the X.509-SVID that SPIRE sent can't be used: {0}")]
    Svid(#[from] Broken),
}

impl Update {
    /// The SVID to use, checked at `now`: that with `hint`, or else the first. None: none was sent.
    ///
    /// Only `domain` and its roots vouch for it. Bundles of other trust domains that break a rule are left out, for
    /// they are somebody else's mistake.
    pub(super) fn read(
        self,
        domain: &TrustDomain,
        hint: Option<&str>,
        now: SystemTime,
    ) -> Result<Option<X509Svid>, Unusable> {
        let Some(offer) = choose(self.offers, hint)? else { return Ok(None) };
        let federated = federated(self.federated, domain);
        Ok(Some(offer.read(domain, federated, now)?))
    }
}

/// The first offer with `hint`: where two have the same, the first is meant (SPIFFE Workload API §5.2.1).
fn choose(offers: Vec<Offer>, hint: Option<&str>) -> Result<Option<Offer>, Unusable> {
    let Some(wanted) = hint.filter(|_| !offers.is_empty()) else { return Ok(offers.into_iter().next()) };
    let found: Vec<String> = offers.iter().take(8).map(|offer| format!("{:?}", short(&offer.hint))).collect();
    match offers.into_iter().find(|offer| offer.hint == wanted && offer.hint.len() <= MAX_HINT) {
        Some(offer) => Ok(Some(offer)),
        None => Err(Unusable::Hint { wanted: wanted.to_owned(), found }),
    }
}

impl Offer {
    fn read(
        self,
        domain: &TrustDomain,
        federated: BTreeMap<TrustDomain, Vec<Vec<u8>>>,
        now: SystemTime,
    ) -> Result<X509Svid, Broken> {
        let spiffe_id: SpiffeId = self.spiffe_id.parse().map_err(|problem| Broken::NoSpiffeId { problem })?;
        if spiffe_id.trust_domain() != domain {
            let (found, expected) = (spiffe_id.trust_domain().clone(), domain.clone());
            return Err(Broken::TrustDomain { found, expected });
        }
        let chain = certificates(&self.chain, LEAF)?;
        let roots = certificates(&self.bundle, ROOT)?;
        if roots.is_empty() {
            return Err(Broken::NoRoots(domain.clone()));
        }
        let info = public_key_info_of(&self.key).map_err(|_| Broken::NoKey)?;
        let (not_before, not_after) = verify_x509(&chain, &roots, &spiffe_id, &info, now)?;
        Ok(X509Svid { spiffe_id, chain, key: self.key, roots, federated, not_before, not_after })
    }
}

/// The bundles of other trust domains that keep the rules.
pub(super) fn federated(
    bundles: HashMap<String, Vec<u8>>,
    own: &TrustDomain,
) -> BTreeMap<TrustDomain, Vec<Vec<u8>>> {
    let mut kept = BTreeMap::new();
    for (name, ders) in bundles {
        match foreign(&name, &ders) {
            Ok((domain, _)) if domain == *own => {}
            Ok((domain, roots)) => {
                kept.insert(domain, roots);
            }
            Err(broken) => warn!(bundle = short(&name), %broken, "a federated bundle is left out"),
        }
    }
    kept
}

fn foreign(name: &str, ders: &[u8]) -> Result<(TrustDomain, Vec<Vec<u8>>), Broken> {
    let unnamed = || Broken::BundleName { name: short(name) };
    let id: SpiffeId = name.parse().map_err(|_| unnamed())?;
    if !id.path().is_empty() {
        return Err(unnamed());
    }
    let roots = certificates(ders, ROOT)?;
    verify_roots(&roots, id.trust_domain())?;
    Ok((id.trust_domain().clone(), roots))
}

/// As much of a foreign text as a message can bear.
pub(super) fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Whether the two are the same but for where they lie in memory: then nothing has changed.
pub(super) fn same(one: &X509Svid, two: &X509Svid) -> bool {
    one.chain == two.chain
        && one.key == two.key
        && one.roots == two.roots
        && one.federated == two.federated
        && one.spiffe_id == two.spiffe_id
}

#[cfg(test)]
mod tests;
