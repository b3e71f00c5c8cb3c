//! Driver, agent and issuer of two versions side by side, in every mixture that an upgrade or a rollback passes
//! through: pods that run keep their files and follow their secrets, and pods start. `make mixed-test FROM=commit`.

#![expect(clippy::indexing_slicing, reason = "what is missing fails the test")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::pods::{LIMIT, PATH, Space, name, until};
use countersign_cluster::world::{Case, Kind, World, case, main_with};
use countersign_cluster::{images, node};
use countersign_tests::processes::workspace;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Tag of the other version's images.
const OTHER: &str = "other";
/// JWT-SVIDs are renewed every half of this, by the ticket that came with the X.509-SVID: perhaps another version's.
const JWT_TTL: &str = "1m";
const ASKS: [(&str, &str); 4] = [
    ("secret.countersign.dev/p", "sops:e2e-skew.live#password"),
    ("svid.countersign.dev/x509", "tls.crt,tls.key,ca.crt"),
    ("jwt.countersign.dev/token", "https://api.example.com"),
    ("countersign.dev/refresh", "1s"),
];
/// Says every twentieth of a second which of its files can't be read.
const WATCHER: &str =
    r#"while :; do cat "$0/p" "$0/tls.crt" "$0/token" >/dev/null || echo missing; sleep 0.05; done"#;

/// Which parts are of the other version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Mixture {
    driver: bool,
    agent: bool,
    issuer: bool,
}

fn main() -> Result<ExitCode> {
    let all = |driver, agent, issuer| Mixture { driver, agent, issuer };
    let new = Mixture::default();
    let old = all(true, true, true);
    let cases: Vec<Case> = vec![
        case("old_driver_beside_a_new_agent", Kind::Node, move |world| {
            run(world, "driver", vec![all(true, false, false), new])
        }),
        case("new_driver_beside_an_old_agent", Kind::Node, move |world| {
            run(world, "agent", vec![all(false, true, false), new])
        }),
        case("old_issuer_and_new_agents", Kind::Node, move |world| {
            run(world, "issuer", vec![all(false, false, true), new])
        }),
        case("new_issuer_and_old_agents", Kind::Node, move |world| {
            run(world, "agents", vec![all(true, true, false), new])
        }),
        case("from_old_to_new_and_back", Kind::Node, move |world| {
            run(world, "upgrade", vec![old, new, old, new])
        }),
    ];
    main_with(cases, &json!({"issuer": {"jwtTtl": JWT_TTL}}))
}

/// Goes through these mixtures with one pod that runs all the while, and others that start in each.
async fn run(world: Arc<World>, case: &str, mixtures: Vec<Mixture>) -> Result<()> {
    others()?;
    let space = world.space(&format!("skew-{case}")).await?;
    let outcome = match through(&world, &space, mixtures).await {
        Ok(()) => Ok(()),
        // Before all is put right again: which pods there were, and what they said.
        Err(error) => Err(error.context(world.system().await?.tails(40).await)),
    };
    mixed(&world.system().await?, Mixture::default()).await?;
    outcome?;
    space.remove().await
}

async fn through(world: &World, space: &Space, mixtures: Vec<Mixture>) -> Result<()> {
    let (store, key) = (world.store().await?, format!("{}.live", space.name()));
    let write = async |text: &str| store.write(&key, &json!({"password": text})).await;
    write("first").await?;
    let reference = format!("sops:{key}#password");
    let asks: Vec<_> = [("countersign.dev/inject", "true"), (ASKS[0].0, &reference)]
        .into_iter()
        .chain(ASKS[1..].iter().copied())
        .collect();
    let mut manifest = space.manifest("survivor", &asks);
    manifest["spec"]["containers"][0]["command"] = json!(["sh", "-c", WATCHER, PATH]);
    space.start_from(&manifest).await?;
    for (round, mixture) in mixtures.into_iter().enumerate() {
        let round = format!("round-{round}");
        let step = async {
            mixed(&world.system().await?, mixture).await?;
            let token = space.file("survivor", "token").await?;
            write(&round).await?;
            space.file_becomes("survivor", "p", &round).await?;
            space.start_from(&space.manifest(&round, &asks)).await?;
            ensure!(space.file(&round, "p").await? == round);
            ensure!(space.file(&round, "token").await?.split('.').count() == 3);
            let failed: Vec<_> = space
                .events(&round)
                .await?
                .into_iter()
                .filter(|event| event.contains("FailedMount"))
                .collect();
            ensure!(failed.is_empty(), "{failed:#?}");
            let renewed = async || Ok((space.file("survivor", "token").await? != token).then_some(()));
            until(LIMIT, "another JWT-SVID in the pod that runs", renewed).await?;
            space.delete(&round).await
        };
        step.await.with_context(|| format!("{round}: of the other version: {mixture:?}"))?;
    }
    let log = space.log("survivor", "main").await?;
    ensure!(log.is_empty(), "its files were not there all the while: {log}");
    space.delete("survivor").await
}

/// Hands the other version's images to the node, under a tag of their own.
fn others() -> Result<()> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    for part in ["driver", "agent"] {
        let archive = |directory: &str| target.join(directory).join(format!("countersign-{part}.tar"));
        images::load(&archive("other/images"))?;
        images::tag(
            &format!("localhost/countersign-{part}:{VERSION}"),
            &format!("localhost/countersign-{part}:{OTHER}"),
        )?;
        // Both are of the same number: the name is this version's again.
        images::load(&archive("images"))?;
    }
    Ok(())
}

/// Gives each part its image, and waits until nothing else runs.
async fn mixed(system: &Space, mixture: Mixture) -> Result<()> {
    let image = |part: &str, other: bool| {
        format!("localhost/countersign-{part}:{}", if other { OTHER } else { VERSION })
    };
    let (driver, agent, issuer) =
        (image("driver", mixture.driver), image("agent", mixture.agent), image("agent", mixture.issuer));
    let patch = |containers: Value| {
        Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": containers}}}}))
    };
    let how = PatchParams::default();
    let node = patch(json!([{"name": "driver", "image": driver}, {"name": "agent", "image": agent}]));
    system.api::<DaemonSet>().patch("countersign-node", &how, &node).await?;
    let issuers = patch(json!([{"name": "issuer", "image": issuer}]));
    system.api::<Deployment>().patch("countersign-issuer", &how, &issuers).await?;
    let of =
        |component: &str| ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
    for (component, wanted, number) in
        [("node", vec![driver.as_str(), agent.as_str()], 1), ("issuer", vec![issuer.as_str()], 2)]
    {
        until(LIMIT, "pods of these images alone, ready", async || {
            let pods = system.api::<Pod>().list(&of(component)).await?.items;
            let ready = system.ready(&format!("app.kubernetes.io/component={component}")).await?.len();
            let right = |pod: &Pod| {
                let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
                containers.filter_map(|container| container.image.as_deref()).eq(wanted.iter().copied())
            };
            Ok((pods.len() == number && ready == number && pods.iter().all(right)).then_some(()))
        })
        .await
        .with_context(|| format!("{component}: {wanted:?}"))?;
    }
    for pod in system.api::<Pod>().list(&of("node")).await? {
        let restarts = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        ensure!(restarts.map(|one| one.restart_count).sum::<i32>() == 0, "{} was restarted", name(&pod)?);
    }
    node::settled(node::driver).await?;
    Ok(())
}
