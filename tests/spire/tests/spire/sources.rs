//! The other ways to ask SPIRE, and which of several SVIDs a volume is for.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::pods::{name, until};
use countersign_spire_tests::entry::Entry;
use countersign_spire_tests::page::Broker;
use countersign_spire_tests::spire::{ADMIN_SOCKET, BROKER_SOCKET};
use countersign_spire_tests::vault::HINTED_STORE;
use countersign_spire_tests::world::{Case, Kind, World, case, files, follow};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::life::{INJECT, SOON, X509, id};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("hints_choose_among_several_svids", Kind::Harmless, hints),
        case("a_store_is_asked_by_the_svid_of_its_hint", Kind::Harmless, hinted_store),
        case("the_delegated_api_gives_a_pod_its_svids_and_nothing_that_has_ended", Kind::Alone, delegated),
        case("auto_takes_the_broker_where_spire_has_one", Kind::Alone, auto),
    ]
}

async fn hints(world: Arc<World>) -> Result<()> {
    let space = world.space("hints").await?;
    let selectors = ["k8s:ns:hints", "k8s:sa:default"];
    for which in ["internal", "external"] {
        world.spire.create(&Entry::new(which, &selectors).hinted(which))?;
    }
    for which in ["external", "internal"] {
        let pod = space.start(which, &[X509, ("svid.countersign.dev/hint", which)]).await?;
        let identity = files(&pod)?.identity()?;
        ensure!(identity == format!("spiffe://example.org/{which}"), "{identity} for {which}");
    }
    // What no entry has is said, with those there are.
    let asks = [INJECT, X509, ("svid.countersign.dev/hint", "neither")];
    space.create(&space.manifest("neither", &asks)).await?;
    space.event("neither", &["FailedMount", "neither", "internal", "external"]).await?;
    space.remove().await
}

async fn hinted_store(world: Arc<World>) -> Result<()> {
    let space = world.space("hinted").await?;
    world.spire.create(&Entry::account("hinted", "default").hinted("own"))?;
    // Two identities in one volume: the files are the account's, and the store knows the partner.
    let secret = format!("{HINTED_STORE}:kv/data/payments#username");
    let asks = [
        INJECT,
        X509,
        ("svid.countersign.dev/hint", "own"),
        ("secret.countersign.dev/user", secret.as_str()),
        ("countersign.dev/on-revoked", "wipe"),
    ];
    space.create(&space.manifest("api", &asks)).await?;
    let told = ["FailedMount", "secret.countersign.dev/user", "none of the SVIDs has the hint \"partner\""];
    space.event("api", &told).await?;
    let selectors = ["k8s:ns:hinted", "k8s:sa:default"];
    let entry = world.spire.create(&Entry::new(HINTED_STORE, &selectors).hinted(HINTED_STORE))?;
    let pod = space.running("api").await?;
    let (before, mut follower) = (files(&pod)?, follow(&pod)?);
    ensure!(before.identity()? == id("hinted") && before.text("user") == "app", "{:?}", before.0.keys());
    // Its SVID is taken back: what was read by it goes, and nothing else.
    world.spire.delete(&entry)?;
    let after = follower
        .becomes(SOON, "without what the partner gave", |files| files.text("user").is_empty())
        .await?;
    ensure!(after.text("tls.crt") == before.text("tls.crt") && after.identity()? == id("hinted"));
    space.remove().await
}

/// Installs the release anew with SPIRE asked in another way; what comes of it, once it is as it was.
async fn asked_by(world: &World, api: &str, then: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let mut values = world.values.clone();
    values["spire"]["api"] = json!(api);
    values["spire"]["adminSocket"] = json!(ADMIN_SOCKET);
    let outcome = async {
        world.helm.install(&values).await?;
        world.settled().await?;
        then().await
    };
    let outcome = outcome.await;
    world.helm.install(&world.values).await.context("back to the broker")?;
    world.settled().await?;
    outcome
}

async fn delegated(world: Arc<World>) -> Result<()> {
    // Its rights are SPIRE's to give, not the namespace's.
    let space = world.bare_space("delegated").await?;
    // By what the API server says of the pod: its labels too.
    let selectors = ["k8s:ns:delegated", "k8s:sa:default", "k8s:pod-label:tier:front"];
    world.spire.create(&Entry::new("ns/delegated/sa/default", &selectors).living(20))?;
    let outcome = asked_by(&world, "delegated", async || {
        let asks = [INJECT, X509, ("jwt.countersign.dev/token", "https://api.example.com")];
        let mut manifest = space.manifest("api", &asks);
        manifest["metadata"]["labels"] = json!({"tier": "front"});
        let pod = space.start_from(&manifest).await?;
        let (before, mut follower) = (files(&pod)?, follow(&pod)?);
        ensure!(before.identity()? == id("delegated"), "{}", before.identity()?);
        ensure!(before.jwt("token", 1)?["sub"] == id("delegated"));
        let renewed = follower
            .becomes(SOON, "renewed", |files| files.text("tls.crt") != before.text("tls.crt"))
            .await?;
        ensure!(renewed.identity()? == id("delegated") && renewed.text("tls.key") != before.text("tls.key"));
        // Another pod of the account, without the label, is another workload.
        space.create(&space.manifest("back", &[INJECT, X509])).await?;
        let selectors = ["k8s:ns:delegated", "k8s:sa:default", "k8s:pod-name:back", "k8s:node-name:node-1"];
        space.event("back", &[&["FailedMount", "no registration entry"][..], &selectors].concat()).await?;
        // Without its server, SPIRE goes on to hand out what has ended (the Broker API does not).
        world.spire.kill_server().await?;
        let outcome = async {
            until(SOON, "past its end", async || {
                Ok((crate::faults::now() > files(&pod)?.ends()?).then_some(()))
            })
            .await?;
            manifest["metadata"]["name"] = json!("late");
            space.create(&manifest).await?;
            // What it hands out is looked at, and not used.
            space.event("late", &["FailedMount", "can't be used", "valid from Unix time"]).await
        };
        let outcome = outcome.await;
        world.spire.start_server().await?;
        outcome?;
        ensure!(files(&space.running("late").await?)?.ends()? > crate::faults::now());
        Ok(())
    });
    outcome.await?;
    space.remove().await
}

/// What the agents of the node have said.
pub(crate) async fn said(world: &World) -> Result<String> {
    let system = world.system().await?;
    let nodes = system.ready("app.kubernetes.io/component=node").await?;
    system.log(name(nodes.first().context("a ready pod of driver and agent")?)?, "agent").await
}

async fn auto(world: Arc<World>) -> Result<()> {
    let space = world.space("auto").await?;
    world.spire.create(&Entry::account("auto", "default"))?;
    let reattest = async |broker| {
        world.spire.kill_agent().await?;
        std::fs::remove_file(BROKER_SOCKET).ok();
        world.spire.attest(broker).await
    };
    reattest(Broker::Missing).await?;
    let outcome = asked_by(&world, "auto", async || {
        let pod = space.start("older", &[X509]).await?;
        let before = files(&pod)?;
        ensure!(before.identity()? == id("auto"));
        let log = said(&world).await?;
        ensure!(
            log.contains("SPIRE has no broker socket") && log.contains("may have every identity"),
            "{log}"
        );
        // A SPIRE that has one is asked by it from the agent's next start on.
        reattest(Broker::Ours).await?;
        let system = world.system().await?;
        for node in system.ready("app.kubernetes.io/component=node").await? {
            system.api::<Pod>().delete(name(&node)?, &kube::api::DeleteParams::default()).await?;
            system.gone(name(&node)?).await?;
        }
        world.settled().await?;
        let pod = space.start("newer", &[X509]).await?;
        ensure!(files(&pod)?.identity()? == id("auto"));
        let log = said(&world).await?;
        ensure!(log.contains("SPIRE has a broker socket"), "{log}");
        Ok(())
    });
    let outcome = outcome.await;
    if outcome.is_err() {
        reattest(Broker::Ours).await?;
    }
    outcome?;
    space.remove().await
}
