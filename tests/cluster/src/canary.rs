//! Secrets that are looked for everywhere, and the others that the cases read.

use serde_json::{Value, json};

/// The value that must be found nowhere but in the pod that asked for it.
pub const VALUE: &str = "canary-5dd1f0a7c2e94b36-must-not-leak";
/// Its path.
pub const PATH: &str = "e2e-canary.secret";

/// All secrets that are there from the start.
pub fn documents() -> Vec<(&'static str, Value)> {
    vec![
        (PATH, json!({"value": VALUE})),
        ("e2e-deployment.db", json!({"username": "app", "password": "p4ss"})),
        ("e2e-inline.db", json!({"username": "app", "password": "inline"})),
        ("e2e-users.db", json!({"password": "for-users"})),
        ("e2e-init.db", json!({"password": "for-init"})),
        ("e2e-identity.db", json!({"password": "for-identity"})),
        ("e2e-change.pair", json!({"one": "1", "two": "1"})),
        ("e2e-other.db", json!({"password": "another's"})),
        ("e2e-gone.db", json!({"password": "to-be-gone"})),
        ("e2e-many.db", json!({"password": "for-many"})),
        ("e2e-restart.db", json!({"password": "before"})),
        ("e2e-upgrade.db", json!({"password": "before"})),
        ("e2e-issuer.db", json!({"password": "for-issuer"})),
        ("e2e-reboot.db", json!({"password": "for-reboot"})),
        ("e2e-job.db", json!({"password": "for-job"})),
        ("e2e-signals.db", json!({"password": "before"})),
        ("e2e-explained.db", json!({"password": "for-explained"})),
    ]
}
