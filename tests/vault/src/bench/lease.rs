//! From a pod's end to the end of its database user.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use countersign_tests::bench::report::{Quantity, Row};
use countersign_tests::bench::times::Times;
use countersign_tests::node::SOON;
use countersign_tests::pods::{Pod, Volume};

use super::Effort;
use super::setting::start;
use crate::postgres::Postgres;

pub(super) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let world = start(true).await?;
    let postgres = world.postgres.as_ref().context("PostgreSQL")?;
    let root = world.vault.root();
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..effort.of(30, 8) {
        let asked = Volume::new().secret("user", "vault:database/creds/app#username");
        let pod = Pod::new("payments", &format!("pod-{round}"), "api");
        let mut volume = world.node.published(&pod, asked).await?;
        ensure!(postgres.dynamic_users()?.len() == 1, "a user");
        let began = Instant::now();
        volume.unpublish(SOON).await?;
        ours.push(gone(postgres, began).await?);

        let answer = root.read("database/creds/app").await?;
        let lease = answer.get("lease_id").cloned().context("a lease")?;
        let began = Instant::now();
        root.write("sys/leases/revoke", &serde_json::json!({"lease_id": lease, "sync": true})).await?;
        bare.push(gone(postgres, began).await?);
    }
    let (ours, bare) = (Times::of(ours)?, Times::of(bare)?);
    let row = |percent| {
        let at = |times: &Times| Quantity::Time(times.percentile(percent));
        Row::new(format!("pod end to lease revoked, p{percent}"), at(&ours))
            .floor(at(&bare), "Vault, told to revoke")
            .remark(format!("{} pods; looked for in PostgreSQL", ours.count()))
    };
    Ok(vec![row(50), row(99)])
}

/// How long until the database has no user of Vault's.
async fn gone(postgres: &Postgres, began: Instant) -> Result<Duration> {
    while !postgres.dynamic_users()?.is_empty() {
        ensure!(began.elapsed() < SOON, "the user is still there");
        sleep(Duration::from_millis(1)).await;
    }
    Ok(began.elapsed())
}
