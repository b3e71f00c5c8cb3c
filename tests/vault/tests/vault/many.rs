//! A node's worth of pods, and what of it Vault gets to see.

use std::time::Duration;

use anyhow::{Result, ensure};
use countersign_tests::harness::{Case, Needs, case_within};
use countersign_tests::kubelet::PodVolume;
use countersign_tests::node::SOON;
use countersign_tests::pods::{Pod, Volume};
use countersign_vault_tests::world::{Plan, in_world};
use futures_util::future::try_join_all;
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![case_within(
        Duration::from_secs(300),
        "many::one_login_for_an_identity_and_one_read_for_a_secret",
        Needs::Root,
        one_login_one_read,
    )]
}

const VOLUMES: usize = 250;
const IDENTITIES: usize = 25;

async fn one_login_one_read() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let root = world.vault.root();
        let mut role = root.read("auth/jwt/role/payments_api").await?["data"].clone();
        for number in 0..IDENTITIES {
            role["bound_subject"] = json!(format!("spiffe://example.org/ns/payments/sa/account-{number}"));
            root.write(&format!("auth/jwt/role/payments_account-{number}"), &role).await?;
        }
        crate::refusals::permit(world, &["kv/*"]).await?;
        for name in ["one", "two", "three"] {
            root.write(&format!("kv/data/{name}"), &json!({"data": {"x": name}})).await?;
        }
        let before = world.vault.audit()?.len();
        let mut volumes: Vec<PodVolume> = (0..VOLUMES)
            .map(|number| {
                let account = format!("account-{}", number % IDENTITIES);
                let asked = Volume::new()
                    .secret("one", "vault:kv/data/one#x")
                    .secret("two", "vault:kv/data/two#x")
                    .secret("three", "vault:kv/data/three#x")
                    .refresh("1h");
                world.node.volume(&Pod::new("payments", &format!("pod-{number}"), &account), asked)
            })
            .collect();
        try_join_all(volumes.iter_mut().map(|volume| volume.publish(Duration::from_secs(120)))).await?;
        let audit = world.vault.audit()?;
        let asked = audit.get(before..).unwrap_or_default();
        let logins = asked.iter().filter(|entry| entry.is_login()).count();
        let reads = asked.iter().filter(|entry| entry.asks_for("kv/data")).count();
        ensure!((logins, reads) == (IDENTITIES, 3 * IDENTITIES), "{logins} logins and {reads} reads");
        for volume in &mut volumes {
            volume.unpublish(SOON).await?;
        }
        Ok(())
    })
    .await
}
