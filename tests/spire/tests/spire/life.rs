//! From the first SVID to the last: what a pod is given before it runs, and what follows when its entry changes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use countersign_cluster::node;
use countersign_cluster::pods::{PATH, uid, until};
use countersign_spire_tests::entry::Entry;
use countersign_spire_tests::page;
use countersign_spire_tests::spire::TRUST_DOMAIN;
use countersign_spire_tests::world::{Case, Kind, World, case, files, follow};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("a_pod_has_its_svids_and_secrets_before_it_runs", Kind::Harmless, before_it_runs),
        case("a_waiting_pod_starts_when_its_entry_comes", Kind::Harmless, late_entry),
        case("a_pod_that_waits_for_its_entry_is_told_which_could_be", Kind::Harmless, very_late_entry),
        case("a_deleted_entry_is_withdrawn_from_its_pods_alone", Kind::Harmless, deleted_entry),
        case("rights_taken_away_are_withdrawn_from_their_namespace_alone", Kind::Alone, rights_taken),
    ]
}

/// Asks for the three files of the X.509-SVID.
pub(crate) const X509: (&str, &str) = ("svid.countersign.dev/x509", "tls.crt,tls.key,ca.crt");
pub(crate) const INJECT: (&str, &str) = ("countersign.dev/inject", "true");
/// How long a change may take until it is in the files.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The SPIFFE ID of a namespace's default service account.
pub(crate) fn id(namespace: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/default")
}

async fn before_it_runs(world: Arc<World>) -> Result<()> {
    let space = world.space("first").await?;
    world.spire.create(&Entry::account("first", "default"))?;
    let asks = [
        INJECT,
        X509,
        ("jwt.countersign.dev/token", "https://api.example.com"),
        ("secret.countersign.dev/password", "sops:first.db#password"),
    ];
    let mut manifest = space.manifest("api", &asks);
    // The first process of the pod sees them all.
    let all = format!("cd {PATH} && cat tls.crt tls.key ca.crt token >/dev/null && cat password; echo");
    manifest["spec"]["initContainers"] =
        json!([{"name": "first", "image": "localhost/busybox:1", "command": ["sh", "-c", all]}]);
    let pod = space.start_from(&manifest).await?;
    ensure!(space.log("api", "first").await? == "hunter2\n");
    let files = files(&pod)?;
    let id = id("first");
    ensure!(files.identity()? == id, "{}", files.identity()?);
    let claims = files.jwt("token", 1)?;
    ensure!(claims["sub"] == id && claims["aud"] == json!(["https://api.example.com"]), "{claims}");
    ensure!(space.file("api", "password").await? == "hunter2");
    space.delete("api").await?;
    space.remove().await
}

async fn late_entry(world: Arc<World>) -> Result<()> {
    let space = world.space("late").await?;
    space.create(&space.manifest("prompt", &[INJECT, X509])).await?;
    // Kubelet has prepared the volume's place, and asks for it.
    let asked = async || {
        let pod = space.api::<Pod>().get("prompt").await?;
        Ok(node::directory(uid(&pod)?).join("volumes/kubernetes.io~csi").exists().then_some(()))
    };
    until(SOON, "being mounted", asked).await?;
    world.spire.create(&Entry::account("late", "default"))?;
    let pod = space.running("prompt").await?;
    ensure!(files(&pod)?.identity()? == id("late"));
    let events = space.events("prompt").await?;
    ensure!(
        !events.iter().any(|event| event.contains("FailedMount")),
        "it had to be asked twice: {events:#?}"
    );
    space.delete("prompt").await?;
    space.remove().await
}

async fn very_late_entry(world: Arc<World>) -> Result<()> {
    let space = world.space("very-late").await?;
    space.create(&space.manifest("patient", &[INJECT, X509])).await?;
    // It says which selectors an entry could have, and waits on.
    let words = ["FailedMount", "no registration entry", "k8s:ns:very-late", "k8s:sa:default"];
    space.event("patient", &words).await?;
    world.spire.create(&Entry::account("very-late", "default"))?;
    let pod = space.running("patient").await?;
    ensure!(files(&pod)?.identity()? == id("very-late"));
    space.delete("patient").await?;
    space.remove().await
}

async fn deleted_entry(world: Arc<World>) -> Result<()> {
    let space = world.space("withdrawn").await?;
    for account in ["goes", "stays"] {
        space.account(account).await?;
    }
    let entry = world.spire.create(&Entry::account("withdrawn", "goes"))?;
    world.spire.create(&Entry::account("withdrawn", "stays"))?;
    let mut pods = Vec::new();
    for (name, account, policy) in
        [("keeping", "goes", "keep"), ("wiping", "goes", "wipe"), ("other", "stays", "wipe")]
    {
        let secret = ("secret.countersign.dev/password", "sops:withdrawn.db#password");
        let mut manifest =
            space.manifest(name, &[INJECT, X509, secret, ("countersign.dev/on-revoked", policy)]);
        manifest["spec"]["serviceAccountName"] = json!(account);
        pods.push(space.start_from(&manifest).await?);
    }
    let [keeping, wiping, other] = [&pods[0], &pods[1], &pods[2]];
    let (kept, others) = (files(keeping)?, files(other)?);
    let mut follower = follow(wiping)?;
    world.spire.delete(&entry)?;
    let left = follower.becomes(SOON, "without its key", |files| files.text("tls.key").is_empty()).await?;
    ensure!(left.text("tls.crt").is_empty() && !left.text("ca.crt").is_empty());
    ensure!(files(keeping)? == kept, "the files of a pod that keeps them");
    ensure!(files(other)? == others, "the files of a pod with another entry");
    space.event("wiping", &["no registration entry"]).await?;
    // It comes back with its entry.
    world.spire.create(&Entry::account("withdrawn", "goes"))?;
    let back = follower.becomes(SOON, "whole again", |files| files.identity().is_ok()).await?;
    ensure!(back.text("password") == "for-withdrawn");
    for pod in ["keeping", "wiping", "other"] {
        space.delete(pod).await?;
    }
    space.remove().await
}

async fn rights_taken(world: Arc<World>) -> Result<()> {
    let (out, within) = (world.space("let-out").await?, world.space("let-in").await?);
    let mut pods = Vec::new();
    for space in [&out, &within] {
        world.spire.create(&Entry::account(space.name(), "default"))?;
        pods.push(space.start("api", &[X509, ("countersign.dev/on-revoked", "wipe")]).await?);
    }
    let (mut follower, mut other) = (follow(&pods[0])?, follow(&pods[1])?);
    let others = files(&pods[1])?;
    // As the page makes it. SPIRE looks when a stream begins, and all begin anew with its agent.
    world.cluster.kubectl(&["delete", "rolebinding", "countersign", "--namespace=let-out"])?;
    world.spire.kill_agent().await?;
    world.spire.start_agent().await?;
    let left = follower.becomes(SOON, "without its key", |files| files.text("tls.key").is_empty()).await?;
    ensure!(left.text("tls.crt").is_empty() && !left.text("ca.crt").is_empty());
    out.event("api", &["impersonate-via-spire", "pods in namespace let-out"]).await?;
    let signed = other.becomes(SOON, "signed anew", |files| files.text("tls.crt") != others.text("tls.crt"));
    ensure!(signed.await?.identity()? == id("let-in") && other.swaps == 1, "{} swaps", other.swaps);
    // They are given back.
    world.apply(&page::rights("let-out")?)?;
    let back = follower.becomes(SOON, "whole again", |files| files.identity().is_ok()).await?;
    ensure!(back.identity()? == id("let-out"));
    out.remove().await?;
    within.remove().await
}
