//! Processor time at rest: 250 volumes that nobody changes, each republished every 75 s.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};

use super::Effort;
use super::load::Load;
use super::report::{Quantity, Row};
use super::usage::{Processor, millicores};

const VOLUMES: u32 = 250;
/// Between two republishes of one volume: the middle of kubelet's 60 to 90 s.
const REPUBLISH: Duration = Duration::from_secs(75);
/// Calls that kubelet makes for one republish: it asks twice what the driver can before it publishes.
const CALLS: u32 = 3;
/// How long as many Probes are made.
const FLOOR: Duration = Duration::from_secs(30);
/// After the publishes, until nothing of them is left to do.
const SETTLE: Duration = Duration::from_secs(12);

pub(super) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let mut load = Load::start(None).await?;
    load.grow_to(VOLUMES as usize).await?;
    sleep(SETTLE).await;

    let (before, began, mut pace) = (usage(&load)?, Instant::now(), Pace::new());
    let window = effort.of(2 * REPUBLISH, Duration::from_secs(20));
    while pace.next_within(began + window).await {
        let index = (pace.made - 1) as usize % load.volumes.len();
        load.volumes.get_mut(index).context("a volume")?.publish_once().await.context("a republish")?;
    }
    let (after, took, republishes) = (usage(&load)?, began.elapsed(), pace.made);
    let [driver, agent] = since(&after, &before).map(|used| millicores(used, took));

    let (before, began, mut pace) = (usage(&load)?, Instant::now(), Pace::new());
    let calls = load.calls()?;
    while pace.next_within(began + effort.of(FLOOR, FLOOR / 3)).await {
        for _ in 0..CALLS {
            calls.probe().await?;
        }
    }
    let [probes, _] = since(&usage(&load)?, &before);
    let floor = millicores(probes, began.elapsed());
    load.end().await?;

    let share = Quantity::Millicores;
    let row = Row::new("CPU at rest, 250 volumes, both", share(driver + agent)).target(share(1.0));
    let remark = format!(
        "driver {}, agent {}; {republishes} republishes of {CALLS} calls in {}",
        share(driver),
        share(agent),
        Quantity::Time(took)
    );
    Ok(vec![row.floor(share(floor), "the driver answering Probes at the same pace").remark(remark)])
}

/// One volume after the other, evenly, so that each has its turn once in [`REPUBLISH`].
struct Pace {
    ticks: Interval,
    made: u32,
}

impl Pace {
    fn new() -> Self {
        let mut ticks = interval(REPUBLISH / VOLUMES);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, made: 0 }
    }

    /// Waits for the next turn. None is left when it would come after `end`.
    async fn next_within(&mut self, end: Instant) -> bool {
        let now = self.ticks.tick().await;
        let within = now < end;
        self.made += u32::from(within);
        within
    }
}

fn usage(load: &Load) -> Result<[Processor; 2]> {
    let [driver, agent] = load.processes()?.map(Processor::of);
    Ok([driver?, agent?])
}

fn since(now: &[Processor; 2], earlier: &[Processor; 2]) -> [Duration; 2] {
    let ([driver, agent], [driver_then, agent_then]) = (now, earlier);
    [driver.since(driver_then), agent.since(agent_then)]
}
