//! Processor time at rest: 250 volumes that nobody changes, each republished every 75 s.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::Effort;
use super::load::Load;
use super::report::{Quantity, Row};
use super::usage::{Processor, millicores};

const VOLUMES: u32 = 250;
/// Between two republishes of one volume: the middle of kubelet's 60 to 90 s.
const REPUBLISH: Duration = Duration::from_secs(75);
/// Calls that kubelet makes for one republish: it asks twice what the driver can before it publishes.
const CALLS: u32 = 3;
/// Probes by which the bare cost of a call is measured.
const PROBES: u32 = 500;
/// After the publishes, until nothing of them is left to do.
const SETTLE: Duration = Duration::from_secs(12);

pub(super) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let mut load = Load::start(None).await?;
    load.grow_to(VOLUMES as usize).await?;
    sleep(SETTLE).await;
    let window = effort.of(2 * REPUBLISH, Duration::from_secs(20));

    let (before, began) = (usage(&load)?, Instant::now());
    let republishes = republish(&mut load, window).await?;
    let (after, took) = (usage(&load)?, began.elapsed());
    let [driver, agent] = since(&after, &before).map(|used| millicores(used, took));

    let before = usage(&load)?;
    let calls = load.calls()?;
    for _ in 0..PROBES {
        calls.probe().await?;
    }
    let [probes, _] = since(&usage(&load)?, &before);
    let floor = millicores(probes / PROBES * CALLS * VOLUMES, REPUBLISH);
    load.end().await?;

    let share = Quantity::Millicores;
    let row = Row::new("CPU at rest, 250 volumes, both", share(driver + agent)).target(share(1.0));
    let remark = format!(
        "driver {}, agent {}; {republishes} republishes of {CALLS} calls in {}",
        share(driver),
        share(agent),
        Quantity::Time(took)
    );
    Ok(vec![row.floor(share(floor), "the driver answering as many Probes").remark(remark)])
}

/// Republishes one volume after the other, evenly, for so long. Answers how many times.
async fn republish(load: &mut Load, window: Duration) -> Result<u32> {
    let mut ticks = interval(REPUBLISH / VOLUMES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (end, mut made) = (Instant::now() + window, 0);
    let count = load.volumes.len();
    while Instant::now() < end {
        ticks.tick().await;
        let volume = load.volumes.get_mut(made as usize % count).context("a volume")?;
        volume.publish_once().await.context("a republish")?;
        made += 1;
    }
    Ok(made)
}

fn usage(load: &Load) -> Result<[Processor; 2]> {
    let [driver, agent] = load.processes()?.map(Processor::of);
    Ok([driver?, agent?])
}

fn since(now: &[Processor; 2], earlier: &[Processor; 2]) -> [Duration; 2] {
    let ([driver, agent], [driver_then, agent_then]) = (now, earlier);
    [driver.since(driver_then), agent.since(agent_then)]
}
