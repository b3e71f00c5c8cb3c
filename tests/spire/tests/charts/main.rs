//! `docs/spire.md` beside the hardened SPIRE charts, from an empty cluster to a pod with its secret. `make spire-charts
//! CHARTS=directory`.

#![expect(clippy::indexing_slicing, reason = "what is missing fails the test")]

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, ensure};
use countersign_cluster::cases::{Kind, case};
use countersign_spire_tests::charts::{Case, Charted, PRODUCTION, QUICK, TRUST_DOMAIN, Way};
use countersign_spire_tests::spire::US;
use countersign_spire_tests::world::files;
use serde_json::{Value, json};

const ASKS: [(&str, &str); 4] = [
    ("countersign.dev/inject", "true"),
    ("svid.countersign.dev/x509", "tls.crt,tls.key,ca.crt"),
    ("jwt.countersign.dev/token", "https://api.example.com"),
    ("secret.countersign.dev/password", "sops:charts.db#password"),
];

fn main() -> Result<ExitCode> {
    let cases: Vec<Case> = vec![
        case("the_broker_api_of_the_hardened_charts", Kind::Alone, broker),
        case("the_delegated_api_of_the_hardened_charts", Kind::Alone, delegated),
        case("the_quick_install_of_the_hardened_charts", Kind::Alone, quick),
    ];
    let secrets = [
        ("charted.db", json!({"password": "hunter2"})),
        ("delegated.db", json!({"password": "hunter3"})),
        ("quick.db", json!({"password": "hunter4"})),
    ];
    countersign_spire_tests::charts::main(cases, &secrets)
}

/// A pod of that namespace, and all that it is to have.
async fn served(world: &Charted, namespace: &str, password: &str, allowed: bool) -> Result<()> {
    let space = world.new_space(namespace).await?;
    let secret = format!("sops:{namespace}.db#password");
    let mut asks = ASKS;
    asks[3].1 = &secret;
    space.create(&space.manifest("api", &asks)).await?;
    if allowed {
        // Without the page's rights nobody of the namespace is let in; with them it goes on.
        let us = US.replace("example.org", TRUST_DOMAIN);
        space.event("api", &["FailedMount", "impersonate-via-spire", &us]).await?;
        world.allow(namespace)?;
    }
    let pod = space.running("api").await?;
    let (files, id) = (files(&pod)?, format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/default"));
    ensure!(files.identity()? == id, "{}", files.identity()?);
    ensure!(files.jwt("token", 1)?["sub"] == id, "{}", files.jwt("token", 1)?);
    ensure!(space.file("api", "password").await? == password);
    space.remove().await
}

async fn broker(world: Arc<Charted>) -> Result<()> {
    world.install(&PRODUCTION, Way::Broker).await?;
    // Both of the page's blocks, as the charts write them.
    let conf = world.agent_conf(&PRODUCTION)?;
    ensure!(within(&conf, "access_policy") == Some(&json!("enforced")), "{conf:#}");
    ensure!(within(&conf, "pod_reference_scope") == Some(&json!("agent_node")), "{conf:#}");
    // Who has left out the page's second step is told.
    let space = world.new_space("early").await?;
    world.allow("early")?;
    space.create(&space.manifest("api", &ASKS[..2])).await?;
    let words = ["FailedMount", "spire-agent", "create subjectaccessreviews.authorization.k8s.io"];
    space.event("api", &words).await?;
    world.let_spire_ask(&PRODUCTION)?;
    space.running("api").await?;
    space.remove().await?;
    served(&world, "charted", "hunter2", true).await
}

async fn delegated(world: Arc<Charted>) -> Result<()> {
    world.install(&PRODUCTION, Way::Delegated).await?;
    ensure!(within(&world.agent_conf(&PRODUCTION)?, "authorized_delegates").is_some());
    served(&world, "delegated", "hunter3", false).await
}

async fn quick(world: Arc<Charted>) -> Result<()> {
    world.install(&QUICK, Way::Broker).await?;
    world.let_spire_ask(&QUICK)?;
    served(&world, "quick", "hunter4", true).await
}

/// The value of a key, wherever it is.
fn within<'a>(document: &'a Value, key: &str) -> Option<&'a Value> {
    match document {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|value| within(value, key))),
        Value::Array(list) => list.iter().find_map(|value| within(value, key)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}
