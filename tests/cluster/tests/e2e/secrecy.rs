//! A secret and the tokens that fetch it are nowhere but in the pod that asked for it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::canary;
use countersign_cluster::node;
use countersign_cluster::pods::{Space, uid};
use countersign_cluster::scan::{self, Found, Needle};
use countersign_cluster::world::{Case, Kind, World, case};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

pub(crate) fn cases() -> Vec<Case> {
    vec![case("canary_is_found_in_its_own_pod_only", Kind::Node, canary_case).on_older()]
}

/// Name of the pod that has it: it is in all the places that are looked through, which shows that looking finds.
const HOLDER: &str = "canary-holder-41c7";

async fn canary_case(world: Arc<World>) -> Result<()> {
    let space = world.space("canary").await?;
    let reference = format!("sops:{}#value", canary::PATH);
    let template = format!("value={{{{ secret(\"sops:{}\").value }}}}", canary::PATH);
    let pod = space
        .start(
            HOLDER,
            &[
                ("secret.countersign.dev/value", &reference),
                ("template.countersign.dev/env", &template),
                ("svid.countersign.dev/x509", "tls.crt,tls.key,ca.crt"),
                ("jwt.countersign.dev/token", "https://api.example.com"),
                ("countersign.dev/refresh", "1s"),
            ],
        )
        .await?;
    ensure!(space.file(HOLDER, "value").await? == canary::VALUE);
    // Trouble is when secrets slip out: a refresh that fails, an agent that dies.
    let store = world.store().await?;
    store.write_raw(canary::PATH, "broken: [").await?;
    let old = node::settled(node::agent).await?;
    node::signal(old, rustix::process::Signal::KILL)?;
    node::replaced(old, node::agent).await?;
    store.write(canary::PATH, &serde_json::json!({"value": canary::VALUE})).await?;
    let second = space.start("canary-second", &[("secret.countersign.dev/value", &reference)]).await?;

    let own = [volume(&pod)?, volume(&second)?];
    for what in ["secret", "token", "private key"] {
        let mut looks = 0;
        let (elsewhere, held) = loop {
            let secret = shown(&space, what).await?;
            let found = look(&world, &own, &Needle::new(secret.as_bytes())).await?;
            // Kubelet's next republish after the agent's death brings a new token and a new key: what was looked for then
            // has been in its volume for a part of the time only.
            if shown(&space, what).await? == secret {
                break found;
            }
            looks += 1;
            ensure!(looks < 5, "the {what} is another at each look");
        };
        ensure!(elsewhere.is_empty(), "the {what} was found in {elsewhere:#?}");
        ensure!(!held.is_empty(), "the {what} was not found in its own volume: looking finds nothing");
    }
    let control = everywhere(&world, &Needle::new(HOLDER.as_bytes())).await?;
    for place in ["etcd", "kubelet.log", "audit.log", "/pods/", "metrics of kubelet"] {
        ensure!(
            control.places.iter().any(|found| found.contains(place)),
            "the pod's name was not found in {place}: looking finds nothing; it was in {:#?}",
            control.places
        );
    }
    tokens_of_pods(&world)?;
    space.delete(HOLDER).await?;
    space.delete("canary-second").await?;
    space.remove().await
}

/// What the holder's files have of it.
async fn shown(space: &Space, what: &str) -> Result<String> {
    Ok(match what {
        "token" => space.file(HOLDER, "token").await?,
        "private key" => {
            let key = space.file(HOLDER, "tls.key").await?;
            key.lines().nth(1).context("a line of a key")?.to_owned()
        }
        _ => canary::VALUE.to_owned(),
    })
}

/// Where it is: anywhere else, and in the volumes that may have it.
async fn look(world: &World, own: &[String], needle: &Needle) -> Result<(Vec<String>, Vec<String>)> {
    let mut elsewhere = everywhere(world, needle).await?.places;
    let mut held = Vec::new();
    for (mount, found) in scan::memory(needle)? {
        if own.iter().any(|own| mount.starts_with(own)) {
            held.extend(found.places);
        } else {
            elsewhere.extend(found.places.into_iter().map(|place| format!("{mount}: {place}")));
        }
    }
    Ok((elsewhere, held))
}

fn volume(pod: &Pod) -> Result<String> {
    let volumes = node::volumes(uid(pod)?)?;
    Ok(volumes.first().context("a volume")?.source.clone())
}

/// Disk (etcd, every log, kubelet, containerd), processes, and all metrics.
async fn everywhere(world: &World, needle: &Needle) -> Result<Found> {
    let mut all = Found::default();
    let mut add = |found: Found| {
        all.places.extend(found.places);
        all.bytes += found.bytes;
    };
    let mut disk = scan::tree(world.node()?.files().root(), needle)?;
    // The namespace of the release keeps no plain text on disk; the age key is the tests' own.
    disk.places.retain(|place| !place.ends_with("/age.key"));
    add(disk);
    add(scan::processes(needle)?);
    for (name, text) in metrics(world).await? {
        let found = needle.is_in(text.as_bytes());
        add(Found {
            places: found.then(|| format!("metrics of {name}")).into_iter().collect(),
            bytes: text.len() as u64,
        });
    }
    Ok(all)
}

async fn metrics(world: &World) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    let cluster = world.node()?;
    for (name, path) in [
        ("kubelet", "/api/v1/nodes/node-1/proxy/metrics"),
        ("kubelet's containers", "/api/v1/nodes/node-1/proxy/metrics/cadvisor"),
        ("the API server", "/metrics"),
    ] {
        all.push((name.to_owned(), cluster.kubectl(&["get", "--raw", path])?));
    }
    let system: Space = world.system().await?;
    for pod in system.api::<Pod>().list(&ListParams::default()).await? {
        let name = pod.metadata.name.unwrap_or_default();
        let port = if name.contains("issuer") { 9411 } else { 9410 };
        let path = format!("/api/v1/namespaces/{}/pods/{name}:{port}/proxy/metrics", system.name());
        all.push((name, cluster.kubectl(&["get", "--raw", &path])?));
    }
    Ok(all)
}

/// Tokens that pods show to us are in no file at all: not in a log, not in etcd, not on disk. The cluster's own, for
/// other audiences, lie in memory and are none of our doing.
fn tokens_of_pods(world: &World) -> Result<()> {
    let root = world.node()?.files().root();
    for place in scan::tree(root, &Needle::any_token())?.places {
        for payload in scan::tokens(&fs::read(Path::new(&place))?) {
            ensure!(
                !payload.contains("\"countersign\"") && !payload.contains("spiffe://"),
                "{place} has a token: {payload}"
            );
        }
    }
    Ok(())
}
