//! What SPIRE renews, rotates and federates, as programs see it that read the files.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::pods::{LIMIT, until};
use countersign_spire_tests::entry::Entry;
use countersign_spire_tests::files::{Files, blocks};
use countersign_spire_tests::nginx::Nginx;
use countersign_spire_tests::world::{Case, Kind, World, case, files, follow, volume};
use countersign_vault_tests::authority::Authority;
use serde_json::{Value, json};

use crate::life::{INJECT, SOON, X509, id};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("renewals_reach_a_reader_as_one_set_each", Kind::Harmless, renewals),
        case("nginx_serves_each_renewed_certificate", Kind::Harmless, nginx),
        case("federated_bundles_come_and_go", Kind::Harmless, federation),
        case("an_entry_that_stops_federating_takes_its_bundle_along", Kind::Harmless, unfederated),
        case("a_new_x509_authority_reaches_every_pod", Kind::Alone, new_authority),
        case("a_new_jwt_authority_signs_whoever_comes_next", Kind::Alone, new_jwt_authority),
        case("a_pod_of_the_same_name_is_another_pod", Kind::Harmless, same_name),
    ]
}

async fn renewals(world: Arc<World>) -> Result<()> {
    let space = world.space("renewals").await?;
    // SPIRE renews at half of it.
    world.spire.create(&Entry::account("renewals", "default").living(20))?;
    let pod = space.start("reader", &[X509, ("svid.countersign.dev/pem", "pair.pem")]).await?;
    let (mut last, mut follower) = (files(&pod)?, follow(&pod)?);
    for renewal in 1..=3 {
        let next =
            follower.becomes(SOON, "renewed", |files| files.text("tls.crt") != last.text("tls.crt")).await?;
        ensure!(follower.swaps == renewal, "{} swaps for {renewal} renewals", follower.swaps);
        ensure!(next.identity()? == id("renewals") && next.text("tls.key") != last.text("tls.key"));
        ensure!(next.text("pair.pem") == format!("{}{}", next.text("tls.key"), next.text("tls.crt")));
        // As the pod itself sees it.
        ensure!(space.file("reader", "tls.crt").await? == files(&pod)?.text("tls.crt"));
        last = next;
    }
    space.delete("reader").await?;
    space.remove().await
}

async fn nginx(world: Arc<World>) -> Result<()> {
    let space = world.space("nginx").await?;
    world.spire.create(&Entry::account("nginx", "default").living(40))?;
    let pod = space.start("web", &[X509]).await?;
    let mut follower = follow(&pod)?;
    let mut last = files(&pod)?;
    let nginx = Nginx::start(&world.directory, &volume(&pod)?).await?;
    ensure!(nginx.serves()? == last.blocks("tls.crt")[0], "another certificate than the file's");
    for _ in 0..2 {
        last =
            follower.becomes(SOON, "renewed", |files| files.text("tls.crt") != last.text("tls.crt")).await?;
        nginx.reload()?;
        let leaf = last.blocks("tls.crt")[0].clone();
        until(SOON, "serving the new certificate", async || Ok((nginx.serves()? == leaf).then_some(())))
            .await?;
    }
    nginx.end()?;
    space.delete("web").await?;
    space.remove().await
}

async fn federation(world: Arc<World>) -> Result<()> {
    let space = world.space("federation").await?;
    let partner = Authority::new("partner's root")?;
    world.spire.set_bundle("partner.example", partner.pem())?;
    let entry = Entry::account("federation", "default").federating("partner.example");
    world.spire.create(&entry)?;
    space.account("alone").await?;
    world.spire.create(&Entry::account("federation", "alone"))?;
    let optional = ("bundle.countersign.dev/partner.pem", "partner.example?optional");
    let pod = space.start("api", &[X509, optional]).await?;
    // SPIRE's agent may have the entry before the bundle; the file is optional, and comes with it.
    let mut follower = follow(&pod)?;
    let given = |files: &Files| !files.blocks("partner.pem").is_empty();
    let held = follower.becomes(SOON, "given the bundle", given).await?;
    ensure!(held.blocks("partner.pem") == blocks(partner.pem()), "another bundle than the one that was set");
    // Never a part of the pod's own: nobody of that domain passes for one of this.
    ensure!(!held.blocks("ca.crt").contains(&held.blocks("partner.pem")[0]));
    // Only who federates gets it.
    let required = ("bundle.countersign.dev/partner.pem", "partner.example");
    let mut manifest = space.manifest("alone", &[INJECT, required]);
    manifest["spec"]["serviceAccountName"] = json!("alone");
    space.create(&manifest).await?;
    space.event("alone", &["FailedMount", "partner.example"]).await?;
    world.spire.server(&["bundle", "delete", "-id", "spiffe://partner.example", "-mode", "dissociate"])?;
    follower.becomes(SOON, "without the bundle", |files| !files.0.contains_key("partner.pem")).await?;
    space.remove().await
}

async fn unfederated(world: Arc<World>) -> Result<()> {
    let space = world.space("unfederated").await?;
    for domain in ["left.example", "kept.example"] {
        world.spire.set_bundle(domain, Authority::new(domain)?.pem())?;
    }
    for account in ["stops", "goes-on"] {
        space.account(account).await?;
    }
    let federating = |account| Entry::account("unfederated", account).federating("kept.example");
    let entry = world.spire.create(&federating("stops").federating("left.example"))?;
    world.spire.create(&federating("goes-on").federating("left.example"))?;
    let asks = [
        INJECT,
        X509,
        ("bundle.countersign.dev/kept.pem", "kept.example"),
        ("bundle.countersign.dev/left.pem", "left.example?optional"),
    ];
    let required = [INJECT, X509, ("bundle.countersign.dev/left.pem", "left.example")];
    let mut pods = Vec::new();
    for (name, account, asks) in [
        ("optional", "stops", &asks[..]),
        ("required", "stops", &required[..]),
        ("other", "goes-on", &asks[..]),
    ] {
        let mut manifest = space.manifest(name, asks);
        manifest["spec"]["serviceAccountName"] = json!(account);
        let pod = space.start_from(&manifest).await?;
        // The optional one may come after the pod: SPIRE's agent hears of the bundle by itself.
        follow(&pod)?.becomes(SOON, "given the bundle", |files| files.0.contains_key("left.pem")).await?;
        pods.push(pod);
    }
    let before = pods.iter().map(files).collect::<Result<Vec<_>>>()?;
    let mut follower = follow(&pods[0])?;
    world.spire.update(&entry, &federating("stops"))?;
    let after =
        follower.becomes(SOON, "without the bundle", |files| !files.0.contains_key("left.pem")).await?;
    ensure!(
        after.text("kept.pem") == before[0].text("kept.pem") && after.identity()? == before[0].identity()?
    );
    // Whoever can't do without keeps what it had, and is told; whoever else federates has lost nothing.
    space.event("required", &["RefreshFailing", "left.example"]).await?;
    ensure!(
        files(&pods[1])?.text("left.pem") == before[1].text("left.pem"),
        "a file that is required was taken away"
    );
    ensure!(
        files(&pods[2])?.text("left.pem") == before[2].text("left.pem"),
        "another entry's bundle was taken away"
    );
    space.remove().await
}

async fn new_authority(world: Arc<World>) -> Result<()> {
    let space = world.space("authority").await?;
    world.spire.create(&Entry::account("authority", "default"))?;
    let pod = space.start("api", &[X509, ("svid.countersign.dev/jks-truststore", "ca.jks")]).await?;
    let (before, mut follower) = (files(&pod)?, follow(&pod)?);
    let (old, roots) = (world.spire.active("x509")?, before.blocks("ca.crt"));
    let new = world.spire.prepare("x509")?;
    let prepared =
        follower.becomes(SOON, "given the new root", |files| files.blocks("ca.crt") != roots).await?;
    ensure!(prepared.text("tls.crt") == before.text("tls.crt") && prepared.0["ca.jks"] != before.0["ca.jks"]);
    ensure!(prepared.identity()? == id("authority"));
    world.spire.activate("x509", &new)?;
    // Tainted: everybody is signed anew, and trusts both meanwhile.
    world.spire.taint_x509(&old).await?;
    let signed = follower
        .becomes(SOON, "signed anew", |files| files.text("tls.crt") != before.text("tls.crt"))
        .await?;
    ensure!(signed.identity()? == id("authority"));
    world.spire.revoke("x509", &old)?;
    let first = roots.first().context("a root")?;
    let after = follower
        .becomes(SOON, "rid of the old root", |files| !files.blocks("ca.crt").contains(first))
        .await?;
    ensure!(after.identity()? == id("authority"));
    // Whoever comes now is served too: SPIRE's agent and ours have new SVIDs themselves.
    let late = space.start("late", &[X509]).await?;
    ensure!(files(&late)?.identity()? == id("authority"));
    space.remove().await
}

/// The ids of the keys that the trust domain's JWT-SVIDs may be signed with.
fn jwt_keys(bundle: &str) -> Result<Vec<String>> {
    let bundle: Value = serde_json::from_str(bundle)?;
    let keys = bundle["keys"].as_array().context("keys")?;
    let ids = keys.iter().filter(|key| key["use"] == "jwt-svid").filter_map(|key| key["kid"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

async fn new_jwt_authority(world: Arc<World>) -> Result<()> {
    let space = world.space("jwt").await?;
    world.spire.create(&Entry::account("jwt", "default"))?;
    let token = ("jwt.countersign.dev/token", "https://api.example.com");
    let first = space.start("first", &[token]).await?;
    let kid = |pod| Ok::<_, anyhow::Error>(files(pod)?.jwt("token", 0)?["kid"].as_str().map(str::to_owned));
    let old = kid(&first)?.context("a kid")?;
    ensure!(jwt_keys(&world.spire.bundle()?)?.contains(&old));
    let new = world.spire.prepare("jwt")?;
    world.spire.activate("jwt", &new)?;
    world.spire.server(&["localauthority", "jwt", "taint", "-authorityID", &old])?;
    world.spire.revoke("jwt", &old)?;
    until(LIMIT, "rid of the old key", async || {
        Ok((!jwt_keys(&world.spire.bundle()?)?.contains(&old)).then_some(()))
    })
    .await?;
    // Another audience, so that no cache has it.
    let second = space.start("second", &[("jwt.countersign.dev/token", "https://b.example.com")]).await?;
    ensure!(kid(&second)?.is_some_and(|kid| kid == new), "{:?} is not {new}", kid(&second)?);
    space.remove().await
}

async fn same_name(world: Arc<World>) -> Result<()> {
    let space = world.space("same").await?;
    for account in ["first", "second"] {
        space.account(account).await?;
        world.spire.create(&Entry::account("same", account).living(20))?;
    }
    let as_account = async |account: &str| {
        let mut manifest = space.manifest("api", &[INJECT, X509]);
        manifest["spec"]["serviceAccountName"] = json!(account);
        space.start_from(&manifest).await
    };
    let who = |pod| files(pod).and_then(|files| files.identity());
    let old = as_account("first").await?;
    ensure!(who(&old)? == "spiffe://example.org/ns/same/sa/first");
    space.delete("api").await?;
    let new = as_account("second").await?;
    let mut follower = follow(&new)?;
    // SPIRE goes on renewing a pod that is gone; through two renewals nothing of it reaches the new one.
    let mut held = files(&new)?;
    for _ in 0..2 {
        ensure!(held.identity()? == "spiffe://example.org/ns/same/sa/second");
        held =
            follower.becomes(SOON, "renewed", |files| files.text("tls.crt") != held.text("tls.crt")).await?;
    }
    ensure!(held.identity()? == "spiffe://example.org/ns/same/sa/second");
    space.delete("api").await?;
    space.remove().await
}
