//! What we cost on a cluster, from kubelet's own counts and the times of pods, beside the same pods with an emptyDir.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::machine::Machine;
use countersign_tests::processes::{Status, cpu_time};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::audit::Requests;
use crate::cluster::Cluster;
use crate::kubelet::Operations;
use crate::node;
use crate::pods::{LIMIT, Space, until};
use crate::world::World;

/// How many pods start at once.
const STORM: usize = 100;
/// How many start one after another.
const QUIET: usize = 30;
/// How long the node is at rest.
const REST: Duration = Duration::from_secs(90);

/// One figure.
struct Row {
    what: &'static str,
    measured: String,
    target: &'static str,
    beside: String,
}

/// All of them, and how busy others kept the machine before.
struct Table {
    load: String,
    rows: Vec<Row>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; load before: {}\n", Machine::this(), self.load)?;
        writeln!(f, "| figure | measured | target | the same with an emptyDir |\n|---|---|---|---|")?;
        for Row { what, measured, target, beside } in &self.rows {
            writeln!(f, "| {what} | {measured} | {target} | {beside} |")?;
        }
        Ok(())
    }
}

/// What a pod has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum With {
    /// A secret and a token of ours.
    Us,
    /// An emptyDir in memory.
    EmptyDir,
}

impl With {
    fn template(self, name: &str, image: &str) -> Value {
        let (annotations, volumes, mounts) = match self {
            Self::Us => (
                json!({
                    "countersign.dev/inject": "true",
                    "secret.countersign.dev/p": "sops:e2e-many.db#password",
                    "jwt.countersign.dev/token": "https://api.example.com",
                }),
                json!([]),
                json!([]),
            ),
            Self::EmptyDir => (
                json!({}),
                json!([{"name": "v", "emptyDir": {"medium": "Memory"}}]),
                json!([{"name": "v", "mountPath": "/v"}]),
            ),
        };
        let container = json!({"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "volumeMounts": mounts});
        json!({
            "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [container], "volumes": volumes},
        })
    }
}

/// Measures everything, and prints it.
pub async fn run(cluster: Cluster, directory: &Path) -> Result<()> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let mut table = Table { load, rows: Vec::new() };
    let began = Instant::now();
    let world = World::new(Some(cluster), directory, "info", &json!({})).await?;
    let installed = began.elapsed();
    let space = world.space("many").await?;
    one(&space, &world, "first", With::Us).await?;
    table.rows.push(Row {
        what: "helm install and the first pod that asks, ready",
        measured: seconds(began.elapsed()),
        target: "-",
        beside: format!("of which helm until all is ready: {}", seconds(installed)),
    });
    quiet(&world, &space, &mut table).await?;
    storm(&world, &space, &mut table).await?;
    space.remove().await?;
    tell(&table.to_string());
    Ok(())
}

/// Pods one after another.
async fn quiet(world: &World, space: &Space, table: &mut Table) -> Result<()> {
    let client = world.client().await?;
    let (mut with, mut without, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..QUIET {
        let before = Operations::read(&client).await?;
        with.push(one(space, world, &format!("quiet-{number}"), With::Us).await?);
        let since = Operations::read(&client).await?.since(&before);
        // A pod that kubelet looked at again meanwhile has two calls: the second has nothing to do.
        if since.published() == 1 {
            calls.push(since.mean());
        }
        without.push(one(space, world, &format!("bare-{number}"), With::EmptyDir).await?);
    }
    ensure!(calls.len() > QUIET / 3, "kubelet made {} single calls in {QUIET} pods", calls.len());
    let calls: Vec<Duration> = calls.into_iter().map(Duration::from_secs_f64).collect();
    table.rows.push(Row {
        what: "NodePublishVolume as kubelet sees it, quiet node, p50 / p99",
        measured: format!("{} / {}", millis(quantile(&calls, 50)), millis(quantile(&calls, 99))),
        target: "8 ms / 25 ms",
        beside: format!("{} calls", calls.len()),
    });
    table.rows.push(Row {
        what: "a pod from its creation to ready, p50 / p99",
        measured: format!("{} / {}", millis(quantile(&with, 50)), millis(quantile(&with, 99))),
        target: "-",
        beside: format!("{} / {}", millis(quantile(&without, 50)), millis(quantile(&without, 99))),
    });
    Ok(())
}

/// One pod, from its creation to ready; gone again afterwards.
async fn one(space: &Space, world: &World, name: &str, with: With) -> Result<Duration> {
    let manifest = with.template(name, world.image());
    let began = Instant::now();
    space.create(&manifest).await?;
    let pods = space.api::<Pod>();
    while !crate::pods::is_ready(&pods.get(name).await?) {
        sleep(Duration::from_millis(10)).await;
        ensure!(began.elapsed() < LIMIT, "{name} is not ready: {:#?}", space.events(name).await?);
    }
    let took = began.elapsed();
    space.delete(name).await?;
    Ok(took)
}

/// Many pods at once, with us and without in turn, and what we take while they run.
async fn storm(world: &World, space: &Space, table: &mut Table) -> Result<()> {
    let client = world.client().await?;
    let audit = world.node()?.files().log("audit");
    let (mut with, mut without, mut means, mut tails, mut requests) =
        (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..3 {
        let before = (Operations::read(&client).await?, Requests::read(&audit)?);
        with.push(many(space, world, &format!("us-{round}"), With::Us).await?);
        let since = Operations::read(&client).await?.since(&before.0);
        ensure!(since.failed().is_empty(), "calls failed: {:?}", since.failed());
        means.push(since.mean());
        tails.push(since.quantile(0.99));
        requests.push(Requests::read(&audit)?.since(&before.1));
        if round == 2 {
            rest(&audit, table).await?;
        }
        gone(space, &format!("us-{round}")).await?;
        without.push(many(space, world, &format!("bare-{round}"), With::EmptyDir).await?);
        gone(space, &format!("bare-{round}")).await?;
    }
    let rate = |times: &[Duration]| {
        let best = times.iter().min().copied().unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "a hundred")]
        let pods = STORM as f64;
        (pods / best.as_secs_f64(), best)
    };
    let ((fast, us), (bare, them)) = (rate(&with), rate(&without));
    table.rows.push(Row {
        what: "100 pods at once: pods/s, best of three",
        measured: format!("{fast:.1}/s ({}; {:+.1} %)", seconds(us), (fast / bare - 1.0) * 100.0),
        target: "within 3 %",
        beside: format!("{bare:.1}/s ({})", seconds(them)),
    });
    table.rows.push(Row {
        what: "NodePublishVolume in it: kubelet's mean, and the bound of its histogram that 99 % stay below",
        measured: means
            .iter()
            .zip(&tails)
            .map(|(mean, tail)| format!("{}, {tail} s", millis(Duration::from_secs_f64(*mean))))
            .collect::<Vec<_>>()
            .join("; "),
        target: "an order of magnitude below 2 s and 15 s",
        beside: "-".to_owned(),
    });
    table.rows.push(Row {
        what: "requests of ours to the API server for 100 pods of one identity",
        measured: requests.iter().map(|one| one.count().to_string()).collect::<Vec<_>>().join(", "),
        target: "one review per identity",
        beside: requests.last().map(ToString::to_string).unwrap_or_default(),
    });
    Ok(())
}

async fn many(space: &Space, world: &World, name: &str, with: With) -> Result<Duration> {
    let deployment = json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": STORM,
            "selector": {"matchLabels": {"app": name}},
            "template": with.template(name, world.image()),
        },
    });
    let began = Instant::now();
    space.api::<Deployment>().create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
    let label = format!("app={name}");
    until(LIMIT * 3, "all ready", async || Ok((space.ready(&label).await?.len() == STORM).then_some(())))
        .await?;
    Ok(began.elapsed())
}

async fn gone(space: &Space, name: &str) -> Result<()> {
    space.api::<Deployment>().delete(name, &DeleteParams::foreground()).await?;
    let of = ListParams::default().labels(&format!("app={name}"));
    until(LIMIT, "all gone", async || Ok(space.api::<Pod>().list(&of).await?.items.is_empty().then_some(())))
        .await
}

/// Memory and processor time with the hundred pods running, and what we ask of the API server meanwhile.
async fn rest(audit: &Path, table: &mut Table) -> Result<()> {
    let issuers = issuers()?;
    let parts =
        [("driver", vec![node::driver()?]), ("agent", vec![node::agent()?]), ("issuer, each", issuers)];
    let busy =
        |pids: &[i32]| -> Result<Duration> { pids.iter().map(|&pid| cpu_time(pid.cast_unsigned())).sum() };
    let before: Vec<Duration> = parts.iter().map(|(_, pids)| busy(pids)).collect::<Result<_>>()?;
    let requests = Requests::read(audit)?;
    sleep(REST).await;
    let asked = Requests::read(audit)?.since(&requests);
    for ((part, pids), before) in parts.iter().zip(before) {
        let number = u32::try_from(pids.len())?.max(1);
        let used = busy(pids)?.saturating_sub(before) / number;
        let first = pids.first().with_context(|| format!("no {part} runs"))?;
        let memory = Status::of(first.cast_unsigned())?.resident_kib;
        let cores = used.as_secs_f64() / REST.as_secs_f64() * 1000.0;
        table.rows.push(Row {
            what: match *part {
                "driver" => "driver with 100 pods: RSS, CPU at rest",
                "agent" => "agent with 100 pods: RSS, CPU at rest",
                _ => "issuer with 100 pods: RSS, CPU at rest",
            },
            measured: format!("{} MiB, {cores:.1} millicores", memory / 1024),
            target: "-",
            beside: "-".to_owned(),
        });
    }
    table.rows.push(Row {
        what: "requests of ours to the API server at rest, per hour",
        measured: (asked.count() * 3600 / REST.as_secs()).to_string(),
        target: "one review per renewed identity",
        beside: format!("{} in {} s: {asked}", asked.count(), REST.as_secs()),
    });
    for (what, account) in [
        ("of which countersign-agent, per minute and hour", "countersign-agent"),
        ("of which countersign-issuer, per minute and hour", "countersign-issuer"),
    ] {
        let count = asked.by_account().get(account).copied().unwrap_or_default();
        table.rows.push(Row {
            what,
            measured: format!("{} / {}", count * 60 / REST.as_secs(), count * 3600 / REST.as_secs()),
            target: "-",
            beside: "-".to_owned(),
        });
    }
    Ok(())
}

fn issuers() -> Result<Vec<i32>> {
    let agent = node::agent()?;
    Ok(node::processes("countersign-agent")?.into_iter().filter(|&pid| pid != agent).collect())
}

fn quantile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((sorted.len() * percent).div_ceil(100).saturating_sub(1).min(last))
        .copied()
        .unwrap_or_default()
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn tell(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(
            (quantile(&times, 50), quantile(&times, 99)),
            (Duration::from_millis(50), Duration::from_millis(99))
        );
        assert_eq!((quantile(&times[..1], 99), quantile(&[], 50)), (times[0], Duration::ZERO));
    }
}
