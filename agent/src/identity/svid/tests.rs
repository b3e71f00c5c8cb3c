use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyUsagePurpose, SanType,
};

use super::*;
use crate::identity::key::PrivateKey;

const ID: &str = "spiffe://example.org/ns/pay/sa/api";

fn now() -> SystemTime {
    moment(1_800_000_000)
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn validity(params: &mut CertificateParams, from: i64, to: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |seconds: i64| epoch + Duration::from_secs((1_800_000_000 + seconds).try_into().unwrap());
    params.not_before = at(from);
    params.not_after = at(to);
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.subject_alt_names = vec![uri("spiffe://example.org")];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, -3600, 86400);
    params
}

fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(ID)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    validity(&mut params, -10, 3600);
    params
}

/// A root, and what it signs.
struct World {
    root: Issuer<'static, PrivateKey>,
    root_der: Vec<u8>,
    key: PrivateKey,
}

impl World {
    fn new() -> Self {
        Self::with_root(authority_params("root"))
    }

    fn with_root(params: CertificateParams) -> Self {
        let root_key = PrivateKey::generate().unwrap();
        let root_der = params.self_signed(&root_key).unwrap().der().to_vec();
        Self { root: Issuer::new(params, root_key), root_der, key: PrivateKey::generate().unwrap() }
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = leaf_params();
        change(&mut params);
        params.signed_by(&self.key, &self.root).unwrap().der().to_vec()
    }

    fn verify(&self, chain: &[Vec<u8>]) -> Result<(SystemTime, SystemTime), Broken> {
        verify_x509(
            chain,
            std::slice::from_ref(&self.root_der),
            &ID.parse().unwrap(),
            &self.key.public_key_info(),
            now(),
        )
    }

    fn broken(&self, change: impl FnOnce(&mut CertificateParams)) -> Broken {
        self.verify(&[self.leaf(change)]).unwrap_err()
    }
}

#[test]
fn a_good_svid() {
    let world = World::new();
    let (from, to) = world.verify(&[world.leaf(|_| {})]).unwrap();
    assert_eq!((from, to), (now() - Duration::from_secs(10), now() + Duration::from_secs(3600)));
    world.verify(&[world.leaf(|leaf| leaf.extended_key_usages.clear())]).unwrap();
    world
        .verify(
            &[world.leaf(|leaf| leaf.subject_alt_names.push(SanType::DnsName("a.b".try_into().unwrap())))],
        )
        .unwrap();
}

#[test]
fn an_intermediate_carries_the_chain() {
    let world = World::new();
    let params = authority_params("intermediate");
    let between_key = PrivateKey::generate().unwrap();
    let between = params.signed_by(&between_key, &world.root).unwrap().der().to_vec();
    let leaf = leaf_params().signed_by(&world.key, &Issuer::new(params, between_key)).unwrap().der().to_vec();
    world.verify(&[leaf.clone(), between]).unwrap();
    assert!(matches!(world.verify(&[leaf]), Err(Broken::Chain(_))));
}

#[test]
fn nothing_or_garbage() {
    let world = World::new();
    assert_eq!(world.verify(&[]), Err(Broken::Empty));
    assert_eq!(world.verify(&[b"junk".to_vec()]), Err(Broken::Der { which: LEAF }));
    let mut two = world.leaf(|_| {});
    two.extend(world.leaf(|_| {}));
    assert_eq!(world.verify(&[two]), Err(Broken::Der { which: LEAF }));
    assert_eq!(
        world.verify(&[world.leaf(|_| {}), b"junk".to_vec()]),
        Err(Broken::Der { which: INTERMEDIATE })
    );
}

#[test]
fn one_uri_name_and_the_right_one() {
    let world = World::new();
    let named = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| uri(name)).collect();
        world.broken(|leaf| leaf.subject_alt_names = names)
    };
    assert_eq!(named(&[]), Broken::UriNames { found: 0 });
    assert_eq!(named(&[ID, ID]), Broken::UriNames { found: 2 });
    assert!(matches!(named(&["https://example.org/ns/pay/sa/api"]), Broken::NoSpiffeId { .. }));
    assert_eq!(named(&["spiffe://example.org"]), Broken::NoPath("spiffe://example.org".parse().unwrap()));
    assert!(matches!(named(&["spiffe://example.com/ns/pay/sa/api"]), Broken::TrustDomain { .. }));
    assert!(matches!(named(&["spiffe://example.org/ns/pay/sa/web"]), Broken::AnotherId { .. }));
}

#[test]
fn without_a_subject_the_names_are_critical() {
    let world = World::new();
    let lax = |leaf: &mut CertificateParams| {
        leaf.subject_alt_names.clear();
        let length = u8::try_from(ID.len()).unwrap();
        let names = [&[0x30, length + 2, 0x86, length][..], ID.as_bytes()].concat();
        leaf.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], names));
    };
    assert_eq!(world.broken(lax), Broken::NamesNotCritical);
    let named = |leaf: &mut CertificateParams| {
        lax(leaf);
        leaf.distinguished_name.push(DnType::OrganizationName, "SPIRE");
    };
    world.verify(&[world.leaf(named)]).unwrap();
}

#[test]
fn a_leaf_is_no_authority() {
    let world = World::new();
    assert_eq!(
        world.broken(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        Broken::LeafIsAuthority
    );
}

#[test]
fn key_usage() {
    let world = World::new();
    assert_eq!(world.broken(|leaf| leaf.key_usages.clear()), Broken::KeyUsage);
    assert_eq!(
        world.broken(|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        Broken::KeyUsage
    );
    // Both may be there.
    let more = [KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement];
    world.verify(&[world.leaf(|leaf| leaf.key_usages.extend(more))]).unwrap();
    for signing in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        assert_eq!(world.broken(|leaf| leaf.key_usages.push(signing)), Broken::SigningUsage);
    }
    // digitalSignature, but the extension is not critical.
    let lax = || {
        let mut usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
        usage.set_criticality(false);
        usage
    };
    assert_eq!(
        world.broken(|leaf| {
            leaf.key_usages.clear();
            leaf.custom_extensions.push(lax());
        }),
        Broken::KeyUsage
    );
    assert_eq!(
        world.broken(|leaf| leaf.custom_extensions.push(lax())),
        Broken::Extension { which: LEAF, extension: "key usage" }
    );
}

#[test]
fn extended_key_usage_is_both_or_none() {
    let world = World::new();
    for one in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
        assert_eq!(world.broken(|leaf| leaf.extended_key_usages = vec![one]), Broken::ExtendedKeyUsage);
    }
}

#[test]
fn another_key() {
    let mut world = World::new();
    let leaf = world.leaf(|_| {});
    world.key = PrivateKey::generate().unwrap();
    assert_eq!(world.verify(&[leaf]), Err(Broken::AnotherKey));
}

#[test]
fn not_now() {
    let world = World::new();
    assert!(matches!(world.broken(|leaf| validity(leaf, 5, 3600)), Broken::Time { .. }));
    assert!(matches!(world.broken(|leaf| validity(leaf, -3600, -5)), Broken::Time { .. }));
    let mut params = authority_params("root");
    validity(&mut params, -86400, -5);
    let old = World::with_root(params);
    // A trust anchor's own dates are not part of path validation (RFC 5280 §6.1.1); the issuer keeps SVIDs from
    // outliving it.
    old.verify(&[old.leaf(|_| {})]).unwrap();
}

#[test]
fn another_root_of_the_same_name() {
    let world = World::new();
    let other = World::new();
    let leaf = other.leaf(|_| {});
    let roots = [world.root_der.clone()];
    let verdict = verify_x509(&[leaf], &roots, &ID.parse().unwrap(), &other.key.public_key_info(), now());
    assert!(matches!(verdict, Err(Broken::Chain(_))), "{verdict:?}");
    let leaf = world.leaf(|_| {});
    let both = [other.root_der.clone(), world.root_der.clone()];
    verify_x509(&[leaf], &both, &ID.parse().unwrap(), &world.key.public_key_info(), now()).unwrap();
}

#[test]
fn a_flipped_bit() {
    let world = World::new();
    let mut leaf = world.leaf(|_| {});
    let last = leaf.len() - 1;
    leaf[last] ^= 1;
    assert!(matches!(world.verify(&[leaf]), Err(Broken::Chain(_))));
}

#[test]
fn authorities_must_be_authorities() {
    let mut params = authority_params("root");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let world = World::with_root(params);
    assert_eq!(world.verify(&[world.leaf(|_| {})]), Err(Broken::NotAuthority { which: ROOT }));
    for name in ["spiffe://example.org/ca", "spiffe://example.com"] {
        let mut params = authority_params("root");
        params.subject_alt_names = vec![uri(name)];
        let world = World::with_root(params);
        assert_eq!(world.verify(&[world.leaf(|_| {})]), Err(Broken::AuthorityName { which: ROOT }), "{name}");
    }
    let world = World::new();
    let other = world.leaf(|_| {});
    assert_eq!(world.verify(&[world.leaf(|_| {}), other]), Err(Broken::NotAuthority { which: INTERMEDIATE }));
}

#[test]
fn an_authority_by_each_of_its_extensions() {
    let rule = |change: fn(&mut CertificateParams)| {
        let mut params = authority_params("root");
        change(&mut params);
        let world = World::with_root(params);
        world.verify(&[world.leaf(|_| {})])
    };
    let refused = Err(Broken::NotAuthority { which: ROOT });
    assert_eq!(rule(|root| root.is_ca = IsCa::ExplicitNoCa), refused);
    assert_eq!(rule(|root| root.is_ca = IsCa::NoCa), refused);
    assert_eq!(rule(|root| root.key_usages.clear()), refused);
    assert_eq!(rule(|root| root.key_usages = vec![KeyUsagePurpose::CrlSign]), refused);
    // keyCertSign, but the extension is not critical.
    let lax = |root: &mut CertificateParams| {
        root.key_usages.clear();
        let mut usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 2, 4]);
        usage.set_criticality(false);
        root.custom_extensions.push(usage);
    };
    assert_eq!(rule(lax), refused);
    // Neither cRLSign nor a name is asked for.
    rule(|root| {
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        root.subject_alt_names.clear();
    })
    .unwrap();
}

#[test]
fn an_intermediate_keeps_the_rules_of_its_issuer_and_its_time() {
    let world = World::new();
    let through = |change: fn(&mut CertificateParams)| {
        let mut params = authority_params("intermediate");
        change(&mut params);
        let key = PrivateKey::generate().unwrap();
        let between = params.signed_by(&key, &world.root).unwrap().der().to_vec();
        let leaf = leaf_params().signed_by(&world.key, &Issuer::new(params, key)).unwrap().der().to_vec();
        world.verify(&[leaf, between])
    };
    through(|_| {}).unwrap();
    assert!(matches!(through(|between| validity(between, -7200, -5)), Err(Broken::Chain(_))));
    let named = through(|between| between.subject_alt_names = vec![uri("spiffe://example.org/server")]);
    assert_eq!(named, Err(Broken::AuthorityName { which: INTERMEDIATE }));
    let foreign = through(|between| between.subject_alt_names = vec![uri("spiffe://example.com")]);
    assert_eq!(foreign, Err(Broken::AuthorityName { which: INTERMEDIATE }));
    // One that lets nobody sign below it. (Of a root only the name and the key count, as with its dates.)
    let signed_by_another = |length| {
        let mut params = authority_params("first");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        let key = PrivateKey::generate().unwrap();
        let first_der = params.signed_by(&key, &world.root).unwrap().der().to_vec();
        let first = Issuer::new(params, key);
        let (params, key) = (authority_params("second"), PrivateKey::generate().unwrap());
        let second_der = params.signed_by(&key, &first).unwrap().der().to_vec();
        let leaf = leaf_params().signed_by(&world.key, &Issuer::new(params, key)).unwrap().der().to_vec();
        world.verify(&[leaf, second_der, first_der])
    };
    signed_by_another(1).unwrap();
    assert!(matches!(signed_by_another(0), Err(Broken::Chain(_))));
}

fn jwt(header: &str, claims: &str) -> Secret {
    Secret::from(format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims)))
}

fn verdict(header: &str, claims: &str) -> Result<SystemTime, Broken> {
    verify_jwt(&jwt(header, claims), &ID.parse().unwrap(), "https://api", now())
}

const HEADER: &str = r#"{"alg":"ES256","kid":"k","typ":"JWT"}"#;

#[test]
fn jwt_rules() {
    let good = format!(r#"{{"sub":"{ID}","aud":"https://api","exp":1800000300}}"#);
    assert_eq!(verdict(HEADER, &good), Ok(moment(1_800_000_300)));
    assert_eq!(
        verdict(HEADER, &good.replace(r#""https://api""#, r#"["https://api"]"#)),
        Ok(moment(1_800_000_300))
    );
    for header in [
        r#"{"alg":"HS256","kid":"k"}"#,
        r#"{"alg":"HS384","kid":"k"}"#,
        r#"{"alg":"HS512","kid":"k"}"#,
        r#"{"alg":"EdDSA","kid":"k"}"#,
        r#"{"alg":"ES256"}"#,
        r#"{"alg":"ES256","kid":""}"#,
        r#"{"alg":"ES256","kid":"k","typ":"wit+jwt"}"#,
    ] {
        assert_eq!(verdict(header, &good), Err(Broken::Header), "{header}");
    }
    assert_eq!(verdict(r#"{"alg":"none","kid":"k"}"#, &good), Err(Broken::Jwt));
    for header in [r#"{"alg":"ES384","kid":"k"}"#, r#"{"alg":"PS512","kid":"k","typ":"JOSE"}"#] {
        assert_eq!(verdict(header, &good), Ok(moment(1_800_000_300)), "{header}");
    }
    assert_eq!(verdict(HEADER, "junk"), Err(Broken::Jwt));
    // Nothing but the compact form of a JWS.
    let whole = jwt(HEADER, &good);
    let whole = std::str::from_utf8(whole.expose()).unwrap();
    let parts: Vec<_> = whole.split('.').collect();
    let json =
        format!(r#"{{"protected":"{}","payload":"{}","signature":"{}"}}"#, parts[0], parts[1], parts[2]);
    for text in [json, format!("{whole}.e.t"), parts[..2].join(".")] {
        let verdict = verify_jwt(&Secret::from(text), &ID.parse().unwrap(), "https://api", now());
        assert_eq!(verdict, Err(Broken::Jwt));
    }
    for narrow in [r#""aud":[]"#, r#""nobody":1"#] {
        assert_eq!(verdict(HEADER, &good.replace(r#""aud":"https://api""#, narrow)), Err(Broken::Audience));
    }
    let nobody = good.replace(r#""sub""#, r#""nobody""#);
    assert!(matches!(verdict(HEADER, &nobody), Err(Broken::Subject(_))));
    assert!(matches!(verdict(HEADER, &good.replace("sa/api", "sa/web")), Err(Broken::Subject(_))));
    assert_eq!(verdict(HEADER, &good.replace("https://api", "https://b")), Err(Broken::Audience));
    assert_eq!(
        verdict(HEADER, &good.replace(r#""https://api""#, r#"["https://api","b"]"#)),
        Err(Broken::Audience)
    );
    assert_eq!(verdict(HEADER, &good.replace("1800000300", "1800000000")), Err(Broken::Expired));
    assert_eq!(verdict(HEADER, &good.replace(r#","exp":1800000300"#, "")), Err(Broken::Expired));
}
