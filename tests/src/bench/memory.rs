//! Resident memory by the number of volumes.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::Effort;
use super::load::Load;
use super::report::{Quantity, Row};
use super::usage::Memory;

/// Most that the driver may have.
const DRIVER: u64 = 6 << 20;
/// Most that the agent may have beside the bytes of the volumes.
const AGENT: u64 = 20 << 20;
/// After a burst, until what was freed is given back.
const SETTLE: Duration = Duration::from_secs(3);

pub(super) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let mut load = Load::start(None).await?;
    let mut rows = Vec::new();
    let mut empty = None;
    for count in effort.of(&[0, 110, 250, 1000][..], &[0, 110, 250]) {
        load.grow_to(*count).await?;
        sleep(SETTLE).await;
        let [driver, agent] = load.processes()?.map(Memory::of);
        let (driver, agent) = (driver?, agent?);
        let (driver_floor, agent_floor) = *empty.get_or_insert((driver.resident, agent.resident));
        let volumes = bytes_of_volumes(&load)?;
        rows.push(
            Row::new(format!("driver RSS, {count} volumes"), Quantity::Bytes(driver.resident))
                .target(Quantity::Bytes(DRIVER))
                .floor(Quantity::Bytes(driver_floor), "no volume")
                .remark(parts(driver)),
        );
        rows.push(
            Row::new(format!("agent RSS, {count} volumes"), Quantity::Bytes(agent.resident))
                .target(Quantity::Bytes(AGENT + volumes))
                .floor(Quantity::Bytes(agent_floor), "no volume")
                .remark(format!("{}; the volumes hold {}", parts(agent), Quantity::Bytes(volumes))),
        );
    }
    load.end().await?;
    Ok(rows)
}

fn parts(memory: Memory) -> String {
    let (anonymous, shared) = (Quantity::Bytes(memory.anonymous), Quantity::Bytes(memory.shared));
    format!("anonymous {anonymous}, shmem {shared}")
}

/// What the volumes' file systems take, in whole pages: charged to the agent's memory limit, and in nobody's RSS.
fn bytes_of_volumes(load: &Load) -> Result<u64> {
    load.volumes.iter().try_fold(0, |sum, volume| {
        let space = rustix::fs::statvfs(volume.target())?;
        Ok(sum + (space.f_blocks - space.f_bfree) * space.f_frsize)
    })
}
