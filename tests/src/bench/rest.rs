//! What volumes cost while nothing happens, and when something does.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep, sleep_until};

use super::figures::{Table, Time, Times};
use super::publish::{change, node, prepared, publish_call, socket};
use crate::kubelet::PodVolume;
use crate::node::{Node, SOON, eventually};
use crate::processes::Process;
use crate::reader::{read, read_file};

/// Volumes on a node for the figures at rest.
const VOLUMES: usize = 250;
/// Kubelet's mean interval between two republishes of a volume.
const REPUBLISH: Duration = Duration::from_secs(75);
/// How long rest is watched.
const WINDOW: Duration = Duration::from_secs(30);

/// Publishes so many more volumes, eight at a time.
async fn add(node: &Node, volumes: &mut Vec<PodVolume>, count: usize) -> Result<()> {
    let socket = &socket(node)?;
    let first = volumes.len();
    let new: Vec<_> = (first..first + count)
        .map(|index| prepared(node, index, &format!("account-{}", index % 25)))
        .collect::<Result<_>>()?;
    stream::iter(&new)
        .map(|volume| async {
            publish_call(socket, node.kubelet.publish_request(&volume.pod, &volume.volume)?).await
        })
        .buffer_unordered(8)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    volumes.extend(new);
    Ok(())
}

fn processes(node: &Node) -> Result<[&Process; 2]> {
    Ok([node.driver.as_ref().context("the driver")?, node.agent.as_ref().context("the agent")?])
}

/// Resident memory at several numbers of volumes.
pub(super) async fn memory(table: &mut Table) -> Result<()> {
    let node = node().await?;
    let mut volumes = Vec::new();
    for count in [0, 110, 250, 1000] {
        let more = count - volumes.len();
        add(&node, &mut volumes, more).await?;
        sleep(Duration::from_secs(1)).await;
        let [driver, agent] =
            processes(&node)?.map(|process| process.status().map(|status| mib(status.resident_kib)));
        let bytes: usize = match volumes.first() {
            Some(volume) => read(&volume.target())?.values().map(Vec::len).sum::<usize>() * count,
            None => 0,
        };
        table.figure(&format!("driver memory (RSS) at {count} volumes"), &driver?, "≤ 6 MiB", "")?;
        let files = mib(u64::try_from(bytes)? / 1024);
        table.figure(
            &format!("agent memory (RSS) at {count} volumes"),
            &agent?,
            "≤ 20 MiB",
            &format!("and {files} in the volumes' files"),
        )?;
    }
    for mut volume in volumes {
        volume.unpublish_once().await?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "memory to be shown")]
fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

/// Processor time of all threads, to the nanosecond.
fn running(process: &Process) -> Result<Duration> {
    let mut total = 0;
    for entry in fs::read_dir(format!("/proc/{}/task", process.pid()))? {
        let text = fs::read_to_string(entry?.path().join("schedstat")).unwrap_or_default();
        total += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(total))
}

fn both_running(node: &Node) -> Result<Duration> {
    processes(node)?.into_iter().map(running).sum()
}

/// Rest, with the republishes that kubelet makes; and what one of them costs.
pub(super) async fn at_rest(table: &mut Table) -> Result<()> {
    let node = node().await?;
    let mut volumes = Vec::new();
    add(&node, &mut volumes, VOLUMES).await?;
    sleep(Duration::from_secs(2)).await;
    let (socket, kubelet) = (socket(&node)?, &node.kubelet);

    let before = both_running(&node)?;
    let pause = REPUBLISH / u32::try_from(VOLUMES)?;
    let began = Instant::now();
    let mut next = began;
    for volume in volumes.iter().cycle() {
        if began.elapsed() > WINDOW {
            break;
        }
        publish_call(&socket, kubelet.publish_request(&volume.pod, &volume.volume)?).await?;
        next += pause;
        sleep_until(next).await;
    }
    let used = both_running(&node)?.saturating_sub(before);
    let millicores = used.as_secs_f64() / began.elapsed().as_secs_f64() * 1000.0;
    table.figure(
        &format!("CPU at rest, {VOLUMES} volumes, both processes"),
        &format!("{millicores:.2} millicores"),
        "≤ 1",
        &format!(
            "republish of each every {} s and refresh every 60 s, watched {} s",
            REPUBLISH.as_secs(),
            WINDOW.as_secs()
        ),
    )?;

    let mut times = Times::default();
    let before = both_running(&node)?;
    for volume in volumes.iter().cycle().take(2000) {
        times.push(publish_call(&socket, kubelet.publish_request(&volume.pod, &volume.volume)?).await?);
    }
    let used = both_running(&node)?.saturating_sub(before) / u32::try_from(times.len())?;
    table.figure(
        "a republish with nothing to do, p50",
        &times.percentile(50).to_string(),
        "≤ 100 µs",
        &format!(
            "p99 {}; {} of processor time in both, new connection included",
            times.percentile(99),
            Time(used)
        ),
    )?;
    for mut volume in volumes {
        volume.unpublish_once().await?;
    }
    Ok(())
}

/// From a changed file at the store to new bytes in the pod.
pub(super) async fn change_arrives(table: &mut Table) -> Result<()> {
    let node = node().await?;
    let mut volume = prepared(&node, 0, "api")?;
    volume.volume = volume.volume.refresh("1s");
    volume.publish(SOON).await?;
    let mut times = Times::default();
    for index in 0..20 {
        let password = format!("password-{index}");
        change(&node, &password)?;
        let began = Instant::now();
        let target = volume.target();
        eventually(SOON, "new bytes", async || {
            read_file(&target, "password").is_ok_and(|text| text == password)
        })
        .await?;
        times.push(began.elapsed());
        // Out of step with the agent's own interval.
        sleep(Duration::from_millis(37 * u64::from(index % 7_u8))).await;
    }
    table.figure(
        "change at the store to new bytes, p50",
        &times.percentile(50).to_string(),
        "",
        &format!("p99 {}; the pod asked to look every second", times.percentile(99)),
    )?;
    volume.unpublish(SOON).await
}
