use std::time::{Duration, UNIX_EPOCH};

use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

use super::*;
use crate::identity::spire::tests::authority::{Authority, Signed};

const ID: &str = "spiffe://example.org/ns/pay/sa/api";
const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn offer(signed: Signed, hint: &str) -> Offer {
    let Signed { id, chain, key, bundle } = signed;
    Offer { spiffe_id: id, chain, key: Secret::new(key), bundle, hint: hint.to_owned() }
}

fn update(offers: Vec<Offer>) -> Update {
    Update { offers, federated: HashMap::new() }
}

fn read_one(signed: Signed) -> Result<X509Svid, Unusable> {
    update(vec![offer(signed, "")]).read(&domain(), None, now()).map(Option::unwrap)
}

fn broken(signed: Signed) -> Broken {
    match read_one(signed) {
        Err(Unusable::Svid(broken)) => broken,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_one() {
    let authority = Authority::new("example.org");
    let svid = read_one(authority.svid(ID, now(), HOUR)).unwrap();
    assert_eq!((svid.spiffe_id.as_str(), svid.not_after), (ID, now() + HOUR));
    assert_eq!((svid.chain.len(), svid.roots.len()), (1, 1));
    assert!(update(Vec::new()).read(&domain(), None, now()).unwrap().is_none());
}

#[test]
fn roots_follow_each_other_and_any_of_them_may_vouch() {
    let (old, new) = (Authority::new("example.org"), Authority::new("example.org"));
    let mut signed = old.svid(ID, now(), HOUR);
    signed.bundle = [new.root_der.clone(), old.root_der.clone()].concat();
    assert_eq!(read_one(signed.clone()).unwrap().roots, [new.root_der.clone(), old.root_der]);
    signed.bundle = new.root_der;
    assert!(matches!(broken(signed), Broken::Chain(_)));
}

#[test]
fn each_rule_that_a_message_can_break() {
    let authority = Authority::new("example.org");
    let good = || authority.svid(ID, now(), HOUR);
    let with = |change: fn(&mut rcgen::CertificateParams)| authority.svid_with(ID, now(), HOUR, change);

    assert!(matches!(broken(Signed { id: "https://a/b".into(), ..good() }), Broken::NoSpiffeId { .. }));
    assert!(matches!(broken(Signed { id: format!("{ID}2"), ..good() }), Broken::AnotherId { .. }));
    assert!(matches!(
        broken(Signed { id: "spiffe://example.com/ns/pay/sa/api".into(), ..good() }),
        Broken::TrustDomain { .. }
    ));
    assert_eq!(broken(Signed { key: b"junk".to_vec(), ..good() }), Broken::NoKey);
    assert_eq!(broken(Signed { key: good().key, ..good() }), Broken::AnotherKey);
    assert_eq!(broken(Signed { chain: Vec::new(), ..good() }), Broken::Empty);
    assert_eq!(broken(Signed { chain: b"junk".to_vec(), ..good() }), Broken::Der { which: LEAF });
    let mut tail = good();
    tail.chain.push(0);
    assert_eq!(broken(tail), Broken::Der { which: LEAF });
    assert_eq!(broken(Signed { bundle: Vec::new(), ..good() }), Broken::NoRoots(domain()));
    assert_eq!(broken(Signed { bundle: b"junk".to_vec(), ..good() }), Broken::Der { which: ROOT });
    // A leaf is no root.
    assert!(matches!(broken(Signed { bundle: good().chain, ..good() }), Broken::NotAuthority { .. }));

    let two =
        with(|leaf| leaf.subject_alt_names.push(SanType::URI("spiffe://example.org/x".try_into().unwrap())));
    assert_eq!(broken(two), Broken::UriNames { found: 2 });
    assert_eq!(
        broken(with(|leaf| leaf.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained))),
        Broken::LeafIsAuthority
    );
    assert_eq!(broken(with(|leaf| leaf.key_usages.clear())), Broken::KeyUsage);
    assert_eq!(broken(with(|leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign))), Broken::SigningUsage);
    let server_only = with(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!(broken(server_only), Broken::ExtendedKeyUsage);
}

#[test]
fn an_expired_one_is_refused_whoever_sends_it() {
    let authority = Authority::new("example.org");
    let old = authority.svid(ID, now() - 2 * HOUR, HOUR);
    assert!(matches!(broken(old), Broken::Time { .. }));
    let early = authority.svid(ID, now() + HOUR, HOUR);
    assert!(matches!(broken(early), Broken::Time { .. }));
}

#[test]
fn a_hint_chooses_the_first_that_has_it() {
    let authority = Authority::new("example.org");
    let named = |path: &str, hint: &str| {
        offer(authority.svid(&format!("spiffe://example.org/{path}"), now(), HOUR), hint)
    };
    let offers = || vec![named("a", "internal"), named("b", "external"), named("c", "external")];
    let chosen = |hint| {
        let svid = update(offers()).read(&domain(), hint, now()).map(Option::unwrap);
        svid.map(|svid| svid.spiffe_id.path().to_owned()).map_err(|error| error.to_string())
    };
    assert_eq!(chosen(None).unwrap(), "/a");
    assert_eq!(chosen(Some("external")).unwrap(), "/b");
    let error = chosen(Some("partner")).unwrap_err();
    assert!(
        error.starts_with(
            r#"none of the SVIDs has the hint "partner"; those sent have "internal", "external", "#
        ),
        "{error}"
    );
    // Longer than a hint may be.
    let long = "h".repeat(1025);
    let too_long = update(vec![named("a", &long)]).read(&domain(), Some(&long), now());
    assert!(matches!(too_long, Err(Unusable::Hint { .. })), "{too_long:?}");
    let longest = &long[1..];
    assert!(update(vec![named("a", longest)]).read(&domain(), Some(longest), now()).unwrap().is_some());
    // Without any SVID there is none to have a hint.
    assert!(update(Vec::new()).read(&domain(), Some("external"), now()).unwrap().is_none());
}

#[test]
fn federated_bundles_stay_apart_and_bad_ones_are_left_out() {
    let (own, other) = (Authority::new("example.org"), Authority::new("partner.example"));
    let leaf = other.svid("spiffe://partner.example/x", now(), HOUR).chain;
    let bundles = HashMap::from([
        ("spiffe://partner.example".to_owned(), other.root_der.clone()),
        // Nobody says by way of federation who vouches for our own trust domain.
        ("spiffe://example.org".to_owned(), other.root_der.clone()),
        ("spiffe://third.example".to_owned(), other.root_der.clone()),
        ("spiffe://fourth.example".to_owned(), leaf),
        ("spiffe://fifth.example/path".to_owned(), other.root_der.clone()),
        ("sixth.example".to_owned(), other.root_der.clone()),
        ("spiffe://seventh.example".to_owned(), b"junk".to_vec()),
    ]);
    let update = Update { offers: vec![offer(own.svid(ID, now(), HOUR), "")], federated: bundles };
    let svid = update.read(&domain(), None, now()).unwrap().unwrap();
    let partner = "partner.example".parse().unwrap();
    assert_eq!(svid.federated, BTreeMap::from([(partner, vec![other.root_der])]));
    assert_eq!(svid.roots, [own.root_der]);
}
