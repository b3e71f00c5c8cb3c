//! Roots, versions and ways of injection that change while pods run and start.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use countersign_cluster::pods::{LIMIT, PATH, Space, name, uid, until};
use countersign_cluster::secrets::SYSTEM;
use countersign_cluster::world::{Case, Kind, World, case};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::restart::{NODE_LABEL, rolled_out};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("issuer_roots_replaced_while_pods_run_and_start", Kind::Alone, roots),
        case("node_pods_rolled_while_pods_start", Kind::Alone, load),
        case("agent_takes_the_startup_taint_from_its_node", Kind::Node, taint).on_older(),
        case("webhook_injects_where_no_policy_does", Kind::Alone, webhook),
    ]
}

const AUDIENCE: &str = "https://api.example.com";
const ASKS: [(&str, &str); 3] = [
    ("countersign.dev/inject", "true"),
    ("svid.countersign.dev/x509", "tls.crt,tls.key,ca.crt"),
    ("jwt.countersign.dev/token", AUDIENCE),
];
/// Says every twentieth of a second which of its files can't be read.
const WATCHER: &str =
    r#"while :; do cat "$0/tls.crt" "$0/ca.crt" "$0/token" >/dev/null || echo missing; sleep 0.05; done"#;

/// A pod that watches its files.
async fn watcher(space: &Space) -> Result<()> {
    let mut manifest = space.manifest("watcher", &ASKS);
    manifest["spec"]["containers"][0]["command"] = json!(["sh", "-c", WATCHER, PATH]);
    space.start_from(&manifest).await.map(drop)
}

async fn was_there(space: &Space) -> Result<()> {
    let log = space.log("watcher", "main").await?;
    ensure!(log.is_empty(), "its files were not there all the while: {log}");
    Ok(())
}

/// The bundle as the issuers publish it: PEM, and the keys of JWT-SVIDs.
async fn published(world: &World) -> Result<(String, Vec<Value>)> {
    let maps = world.system().await?.api::<ConfigMap>();
    let data = maps.get("countersign-bundle").await?.data.context("a bundle")?;
    let document: Value = serde_json::from_str(data.get("bundle.json").context("bundle.json")?)?;
    let keys = document["keys"].as_array().context("keys")?.iter();
    let keys = keys.filter(|key| key["use"] == "jwt-svid").cloned().collect();
    Ok((data.get("bundle.pem").context("bundle.pem")?.clone(), keys))
}

/// The key of the published bundle that has signed a pod's JWT-SVID.
async fn verified(world: &World, space: &Space, pod: &str) -> Result<String> {
    let token = space.file(pod, "token").await?;
    let kid = jsonwebtoken::decode_header(token.as_bytes())?.kid.context("a kid")?;
    let (_, keys) = published(world).await?;
    let key = keys.iter().find(|key| key["kid"] == kid.as_str()).context("its key is not published")?;
    let part = |name: &str| key[name].as_str().with_context(|| format!("no {name}"));
    let key = DecodingKey::from_ec_components(part("x")?, part("y")?)?;
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&[AUDIENCE]);
    let claims = jsonwebtoken::decode::<Value>(token.as_bytes(), &key, &validation)?.claims;
    ensure!(claims["sub"] == format!("spiffe://e2e.test/ns/{}/sa/default", space.name()), "{claims}");
    Ok(kid)
}

/// Every issuer has its root in memory: replacing all of them replaces all roots.
async fn roots(world: Arc<World>) -> Result<()> {
    let space = world.space("roots").await?;
    watcher(&space).await?;
    let before = verified(&world, &space, "watcher").await?;
    let old = published(&world).await?.0;
    let deployments = world.system().await?.api::<Deployment>();
    let roll = json!({"spec": {"template": {"metadata": {"annotations": {"e2e.test/roots": "others"}}}}});
    deployments.patch("countersign-issuer", &PatchParams::default(), &Patch::Strategic(roll)).await?;
    let mut started = 0;
    loop {
        started += 1;
        let pod = format!("pod-{started}");
        space.start_from(&space.manifest(&pod, &ASKS)).await?;
        let events = space.events(&pod).await?;
        ensure!(!events.iter().any(|event| event.contains("FailedMount")), "{pod}: {events:#?}");
        verified(&world, &space, &pod).await?;
        space.api::<Pod>().delete(&pod, &DeleteParams::default()).await?;
        if rolled_out(&deployments.get("countersign-issuer").await?)? {
            break;
        }
    }
    // What an issuer that is gone has signed is good until it ends.
    verified(&world, &space, "watcher").await?;
    space.start_from(&space.manifest("newcomer", &ASKS)).await?;
    let after = verified(&world, &space, "newcomer").await?;
    ensure!(after != before, "the same key signs as before");
    let (new, _) = published(&world).await?;
    let roots =
        |pem: &str| pem.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect::<Vec<_>>();
    ensure!(roots(&new).iter().any(|root| !roots(&old).contains(root)), "no root has come");
    // A root that came reaches the pod that runs, without a new SVID.
    until(LIMIT, "all roots in the pod's bundle", async || {
        let file = space.file("watcher", "ca.crt").await?;
        Ok(roots(&published(&world).await?.0).iter().all(|root| file.contains(root.as_str())).then_some(()))
    })
    .await?;
    was_there(&space).await?;
    space.remove().await
}

/// A new version of driver and agent comes while pods are started one after another.
async fn load(world: Arc<World>) -> Result<()> {
    let space = world.space("load").await?;
    watcher(&space).await?;
    let system = world.system().await?;
    let old: Vec<String> =
        system.ready(NODE_LABEL).await?.iter().map(|pod| Ok(uid(pod)?.to_owned())).collect::<Result<_>>()?;
    let mut values = world.values().clone();
    values["node"] = json!({"podAnnotations": {"e2e.test/version": "load"}});
    let done = std::cell::Cell::new(false);
    let rolling = async {
        world.helm().install(&values).await?;
        until(LIMIT, "rolled", async || {
            let ready = system.ready(NODE_LABEL).await?;
            let all = system.api::<DaemonSet>().get("countersign-node").await?.status.context("a status")?;
            let others = ready.iter().all(|pod| uid(pod).is_ok_and(|uid| !old.iter().any(|old| old == uid)));
            Ok((others && ready.len() == usize::try_from(all.desired_number_scheduled)?).then_some(()))
        })
        .await?;
        done.set(true);
        Ok::<_, anyhow::Error>(())
    };
    let starting = async {
        let mut pods = Vec::new();
        while !done.get() || pods.len() < 10 {
            let pod = format!("pod-{}", pods.len());
            space.create(&space.manifest(&pod, &ASKS)).await?;
            // Some at once, and some while driver or agent is not there.
            if pods.len() % 4 == 3 {
                space.running(&pod).await?;
            }
            pods.push(pod);
        }
        Ok::<_, anyhow::Error>(pods)
    };
    let ((), pods) = tokio::try_join!(rolling, starting)?;
    for pod in &pods {
        space.running(pod).await?;
        verified(&world, &space, pod).await?;
    }
    was_there(&space).await?;
    world.helm().install(world.values()).await?;
    for pod in pods {
        space.api::<Pod>().delete(&pod, &DeleteParams::default()).await?;
    }
    space.remove().await
}

/// A node that starts with the taint takes no pods until kubelet has registered the driver there; then the agent removes it.
async fn taint(world: Arc<World>) -> Result<()> {
    const TAINT: &str = "countersign.dev/agent-not-ready";
    let space = world.space("taint").await?;
    let nodes = Api::<Node>::all(space.client().clone());
    let node = nodes.list(&ListParams::default()).await?.items.into_iter().next().context("a node")?;
    let node = node.metadata.name.context("a name")?;
    let tainted = json!({"spec": {"taints": [
        {"key": TAINT, "effect": "NoSchedule"},
        {"key": "e2e.test/stays", "effect": "PreferNoSchedule"},
    ]}});
    nodes.patch(&node, &PatchParams::default(), &Patch::Merge(tainted)).await?;
    space.create(&space.manifest("patient", &ASKS)).await?;
    // An agent that has just come looks at once; one that runs and has found none for long looks every ten minutes.
    let system = world.system().await?;
    for pod in system.ready(NODE_LABEL).await? {
        system.api::<Pod>().delete(name(&pod)?, &DeleteParams::default()).await?;
    }
    let keys = async || -> Result<Vec<String>> {
        let spec = nodes.get(&node).await?.spec.context("a spec")?;
        Ok(spec.taints.unwrap_or_default().into_iter().map(|taint| taint.key).collect())
    };
    until(LIMIT, "without the taint", async || {
        Ok((!keys().await?.iter().any(|key| key == TAINT)).then_some(()))
    })
    .await?;
    ensure!(keys().await? == ["e2e.test/stays"], "another taint went along");
    space.running("patient").await?;
    nodes.patch(&node, &PatchParams::default(), &Patch::Merge(json!({"spec": {"taints": null}}))).await?;
    space.delete("patient").await?;
    space.remove().await
}

/// The other way of injection, with a real kubelet behind it.
async fn webhook(world: Arc<World>) -> Result<()> {
    let space = world.space("webhook").await?;
    let mut values = world.values().clone();
    values["injection"] = json!({"mode": "webhook"});
    world.helm().install(&values).await?;
    let result = injected(&world, &space).await;
    world.helm().install(world.values()).await?;
    result?;
    space.remove().await
}

async fn injected(world: &World, space: &Space) -> Result<()> {
    let manifest = world.helm().must(&["get", "manifest", "countersign", "--namespace", SYSTEM]).await?;
    ensure!(!manifest.contains("kind: MutatingAdmissionPolicy"), "a policy is there too");
    let hooks = Api::<MutatingWebhookConfiguration>::all(space.client().clone());
    until(LIMIT, "an issuer's root in the configuration", async || {
        let hooks = hooks.get("countersign").await?.webhooks.unwrap_or_default();
        Ok(hooks.iter().all(|hook| hook.client_config.ca_bundle.is_some()).then_some(()))
    })
    .await?;
    // Nobody serves for as long as the issuer is rolled.
    until(LIMIT, "a pod that is admitted", async || {
        match space.create(&space.manifest("given", &ASKS)).await {
            Ok(_) => Ok(Some(())),
            Err(kube::Error::Api(refusal)) if refusal.message.contains("failed calling webhook") => Ok(None),
            Err(error) => bail!(error),
        }
    })
    .await?;
    space.running("given").await?;
    verified(world, space, "given").await?;
    space.delete("given").await
}
