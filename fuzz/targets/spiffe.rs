//! SPIFFE IDs, the IDs of service accounts, and the rules that match them: what is read is the text itself, a name never
//! becomes two segments, and a rule without a star is for one identity.
#![no_main]

use countersign_agent::spiffe::{SpiffeId, TrustDomain};
use countersign_agent::store::allow::{Rule, RuleText};
use countersign_fuzz::assert_readable;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let (first, second, third) =
        (lines.next().unwrap_or_default(), lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let id = read(first);

    // As the agent and the issuer make them.
    let domain: TrustDomain = "example.org".parse().expect("a trust domain");
    if let Ok(made) = domain.service_account(second, third) {
        let segments: Vec<&str> = made.path().split('/').collect();
        assert_eq!(segments, ["", "ns", second, "sa", third]);
        assert_eq!(made.to_string().parse::<SpiffeId>().as_ref(), Ok(&made));
    }

    match Rule::try_from(RuleText { id: second.to_owned(), paths: vec![third.to_owned()] }) {
        Err(error) => assert_readable(&error.to_string()),
        Ok(rule) => {
            if let Some(id) = id {
                let permitted = rule.permits(&id, third);
                assert!(!permitted || second.contains('*') || second == id.as_str(), "{second:?} is for {id} too");
                let elsewhere = format!("spiffe://elsewhere.example{}", id.path());
                if let Ok(elsewhere) = elsewhere.parse()
                    && !second.starts_with("spiffe://elsewhere.example/")
                {
                    assert!(!rule.permits(&elsewhere, third), "{second:?} is for another trust domain");
                }
            }
        }
    }
});

/// The ID, if it is one: then it is the text itself, of the few characters that need no second look.
fn read(text: &str) -> Option<SpiffeId> {
    match text.parse::<SpiffeId>() {
        Err(error) => {
            assert_readable(&error.to_string());
            None
        }
        Ok(id) => {
            assert_eq!(id.as_str(), text);
            assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            assert!(text.len() <= 2048);
            assert!(!id.trust_domain().as_str().chars().any(|c| c.is_ascii_uppercase()));
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
            assert!(id.path().chars().all(plain));
            assert!(id.path().split('/').skip(1).all(|segment| !matches!(segment, "" | "." | "..")));
            Some(id)
        }
    }
}
