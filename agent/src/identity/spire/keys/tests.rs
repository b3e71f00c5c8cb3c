use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;
use crate::identity::spire::tests::authority::Authority;

const ID: &str = "spiffe://example.org/ns/pay/sa/api";

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn token(authority: &Authority) -> Secret {
    Secret::from(authority.jwt(ID, "vault", UNIX_EPOCH + Duration::from_secs(2_000_000_000)))
}

fn bundle(authority: &Authority) -> Value {
    let bundles = authority.jwt_bundles();
    serde_json::from_slice(&bundles["spiffe://example.org"]).unwrap()
}

fn verdict(bundle: &Value, token: &Secret) -> Result<(), Broken> {
    KeySet::parse(bundle.to_string().as_bytes()).unwrap().verify(token, &domain())
}

#[test]
fn only_the_key_that_is_named_vouches() {
    let (ours, other) = (Authority::new("example.org"), Authority::new("example.org"));
    let good = bundle(&ours);
    assert_eq!(verdict(&good, &token(&ours)), Ok(()));
    assert!(matches!(verdict(&good, &token(&other)), Err(Broken::UnknownKey { .. })));
    // Another key under the name of the right one.
    let mut forged = bundle(&other);
    forged["keys"][0]["kid"] = good["keys"][0]["kid"].clone();
    assert_eq!(verdict(&forged, &token(&ours)), Err(Broken::Signature));
    // One letter of the signature.
    let text = String::from_utf8(token(&ours).expose().to_vec()).unwrap();
    let (body, signature) = text.rsplit_once('.').unwrap();
    let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    bytes[10] ^= 1;
    let bent = Secret::from(format!("{body}.{}", URL_SAFE_NO_PAD.encode(bytes)));
    assert_eq!(verdict(&good, &bent), Err(Broken::Signature));
}

#[test]
fn a_token_does_not_choose_how_it_is_verified() {
    let ours = Authority::new("example.org");
    let good = bundle(&ours);
    let kid = good["keys"][0]["kid"].as_str().unwrap();
    for alg in ["HS256", "RS256", "ES384"] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "kid": kid}).to_string());
        let forged = Secret::from(format!("{header}.{}.c2ln", URL_SAFE_NO_PAD.encode("{}")));
        assert_eq!(verdict(&good, &forged), Err(Broken::Signature), "{alg}");
    }
}

#[test]
fn keys_for_other_uses_and_of_unknown_kinds_are_skipped() {
    let ours = Authority::new("example.org");
    let with = |field: &str, value: Value| {
        let mut bundle = bundle(&ours);
        bundle["keys"][0][field] = value;
        verdict(&bundle, &token(&ours))
    };
    assert_eq!(with("use", json!("jwt-svid")), Ok(()));
    for (field, value) in [
        ("use", json!("x509-svid")),
        ("use", json!("sig")),
        ("kid", Value::Null),
        ("kty", json!("AKP")),
        ("crv", json!("P-521")),
    ] {
        assert!(matches!(with(field, value), Err(Broken::UnknownKey { .. })), "{field}");
    }
    let mut mixed = bundle(&ours);
    mixed["keys"].as_array_mut().unwrap().insert(0, json!({"kty": "new", "kid": "x"}));
    assert_eq!(verdict(&mixed, &token(&ours)), Ok(()));
    assert!(KeySet::parse(b"junk").is_none() && KeySet::parse(br#"{"keys":{}}"#).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_last_keys_stay_and_another_domains_are_nobodys() {
    let (ours, other) = (Authority::new("example.org"), Authority::new("partner.example"));
    let keys = Keys::new(domain());
    let vouch = async |authority| keys.vouch(&token(authority), Instant::now()).await;
    keys.trouble("nobody listens");
    let problem = vouch(&ours).await.unwrap_err().to_string();
    assert!(problem.ends_with("are not known yet; nobody listens"), "{problem}");
    keys.learn(&ours.jwt_bundles());
    vouch(&ours).await.unwrap();
    keys.learn(&other.jwt_bundles());
    vouch(&ours).await.unwrap();
    assert!(matches!(vouch(&other).await, Err(Error::IdentityUnavailable { .. })));
}
