//! SPIRE, Countersign and Vault together, and the way from the embedded issuer to SPIRE.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::pods::LIMIT;
use countersign_spire_tests::entry::Entry;
use countersign_spire_tests::vault::{CERT_STORE, HINTED_STORE};
use countersign_spire_tests::world::{Case, Kind, World, case, files, follow};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::life::{INJECT, SOON, X509, id};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("vault_knows_pods_by_both_svids_through_new_authorities", Kind::Alone, vault),
        case("a_pod_moves_from_the_embedded_issuer_to_spire", Kind::Alone, moved),
    ]
}

async fn vault(world: Arc<World>) -> Result<()> {
    let space = world.space("payments").await?;
    space.account("api").await?;
    // Vault takes a certificate's common name for its alias: SPIRE puts an entry's DNS name there.
    world.spire.create(&Entry::account("payments", "api").named("api.payments"))?;
    world.vault.trust_roots(&world.spire.roots_pem()?)?;
    let by_certificate = format!("{CERT_STORE}:kv/data/payments#password");
    let asks = [
        INJECT,
        X509,
        ("secret.countersign.dev/by-jwt", "vault:kv/data/payments#password"),
        ("secret.countersign.dev/by-cert", by_certificate.as_str()),
        ("countersign.dev/refresh", "1s"),
    ];
    let mut manifest = space.manifest("api", &asks);
    manifest["spec"]["serviceAccountName"] = json!("api");
    let pod = space.start_from(&manifest).await?;
    let (before, mut follower) = (files(&pod)?, follow(&pod)?);
    ensure!(before.text("by-jwt") == "first-password" && before.text("by-cert") == "first-password");

    // Both of SPIRE's authorities are replaced; the operator hands Vault the roots, and Vault fetches the keys itself.
    let old = world.spire.active("x509")?;
    let new = world.spire.prepare("x509")?;
    world.vault.trust_roots(&world.spire.roots_pem()?)?;
    world.spire.activate("x509", &new)?;
    world.spire.taint_x509(&old).await?;
    let jwt = world.spire.prepare("jwt")?;
    world.spire.activate("jwt", &jwt)?;
    let signed = follower
        .becomes(SOON, "signed anew", |files| files.text("tls.crt") != before.text("tls.crt"))
        .await?;
    ensure!(signed.identity()? == "spiffe://example.org/ns/payments/sa/api");
    world.spire.revoke("x509", &old)?;
    world.vault.trust_roots(&world.spire.roots_pem()?)?;
    // No login of before counts any more: whoever comes now is known by what the new authorities have signed.
    space.delete("api").await?;
    world.vault.end_logins().await?;
    world.vault.put_password("second-password").await?;
    manifest["metadata"]["name"] = json!("again");
    let again = files(&space.start_from(&manifest).await?)?;
    ensure!(again.text("by-jwt") == "second-password" && again.text("by-cert") == "second-password");
    // Whoever has another identity has no role.
    space.create(&space.manifest("stranger", &[INJECT, asks[2]])).await?;
    world.spire.create(&Entry::account("payments", "default"))?;
    space.event("stranger", &["FailedMount", "vault"]).await?;
    space.remove().await
}

async fn moved(world: Arc<World>) -> Result<()> {
    let mut embedded = world.values.clone();
    embedded["identity"] = json!({"source": "embedded"});
    embedded["issuer"] = json!({"replicas": 1});
    // The issuer gives a pod one SVID.
    embedded["stores"].as_object_mut().context("stores")?.remove(HINTED_STORE);
    world.helm.install(&embedded).await.context("the embedded issuer")?;
    let outcome = async {
        let space = world.space("moved").await?;
        let pod =
            space.start("api", &[X509, ("jwt.countersign.dev/token", "https://api.example.com")]).await?;
        let (before, follower) = (files(&pod)?, follow(&pod)?);
        ensure!(before.identity()? == id("moved"));
        world.spire.create(&Entry::account("moved", "default"))?;
        Ok::<_, anyhow::Error>((space, before, follower))
    };
    let outcome = outcome.await;
    world.helm.install(&world.values).await.context("back to SPIRE")?;
    world.settled().await?;
    let (space, before, mut follower) = outcome?;
    let roots = world.spire.roots()?;
    let after = follower
        .becomes(LIMIT, "signed by SPIRE", |files| files.text("tls.crt") != before.text("tls.crt"))
        .await?;
    // The same name, vouched for by SPIRE and by nobody else.
    ensure!(after.identity()? == id("moved"));
    ensure!(after.blocks("ca.crt").iter().all(|root| roots.contains(root)), "a root that is not SPIRE's");
    ensure!(after.jwt("token", 1)?["iss"] == "https://spire.example.org", "{}", after.jwt("token", 1)?);
    let pod = space.api::<Pod>().get("api").await?;
    let containers = pod.status.and_then(|status| status.container_statuses).context("containers")?;
    ensure!(containers.iter().all(|container| container.restart_count == 0));
    space.remove().await
}
