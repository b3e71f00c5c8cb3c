//! The node's clock jumps while leases and tokens are in use. The agent's time of day is moved under it, by libfaketime;
//! its monotonic time, which renewals run on, stays as on a real machine.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, Setup, eventually};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::processes::Binaries;
use countersign_tests::reader::read_file;
use countersign_tests::scratch::replace_file;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::json;
use tonic::Code;

use crate::asking::{one, pod, refusal_of, says};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("clock::a_day_forward_and_back_again", Needs::Root, a_day_forward),
        case("clock::an_hour_back", Needs::Root, an_hour_back),
        case("clock::another_time_than_vault", Needs::Root, another_time_than_vault),
    ]
}

/// Debian's package libfaketime puts it here.
fn library() -> Result<PathBuf> {
    let found = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|machine| Path::new("/usr/lib").join(machine).join("faketime/libfaketimeMT.so.1"))
        .into_iter()
        .find(|path| path.exists());
    found.context("no libfaketime; on Debian: apt-get install libfaketime")
}

/// The clock of a process.
pub(crate) struct Hands(PathBuf);

impl Hands {
    /// A clock that shows what it is in this directory.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let hands = Self(directory.join("offset"));
        hands.turn("+0")?;
        Ok(hands)
    }

    /// From now on it differs by this, such as `+1d`.
    pub(crate) fn turn(&self, offset: &str) -> Result<()> {
        replace_file(&self.0, offset.as_bytes(), 0o644)
    }
}

/// What a clock shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moves {
    /// The time of day alone, as when somebody sets it.
    TimeOfDay,
    /// Time itself, as if it had passed.
    Time,
}

/// A program of the agent's whose clock has these hands. The library is for it alone, and not for what takes its rights
/// away before.
pub(crate) fn program(hands: &Hands, moves: Moves) -> Result<PathBuf> {
    let monotonic = if moves == Moves::Time { "" } else { " FAKETIME_DONT_FAKE_MONOTONIC=1" };
    let script = format!(
        "#!/bin/sh\nexec env LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1{monotonic} {} \"$@\"\n",
        library()?.display(),
        hands.0.display(),
        Binaries::find()?.agent.display()
    );
    let path = hands.0.with_file_name("agent");
    replace_file(&path, script.as_bytes(), 0o755)?;
    Ok(path)
}

/// Where a clock may lie that other users read.
pub(crate) fn folder() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

async fn with_hands(body: impl AsyncFnOnce(&mut World, &Hands) -> Result<()>) -> Result<()> {
    let folder = folder()?;
    let hands = Hands::new(folder.path())?;
    let agent_binary = Some(program(&hands, Moves::TimeOfDay)?);
    let node = Setup { agent_binary, ..Setup::default() };
    in_world(Plan { node, database: true, ..Plan::default() }, async |world| {
        lives(world, json!({"default_ttl": "9s", "max_ttl": "1h"})).await?;
        body(world, &hands).await
    })
    .await
}

async fn lives(world: &World, changes: serde_json::Value) -> Result<()> {
    let root = world.vault.root();
    let mut role = root.read("database/roles/app").await?["data"].clone();
    let role_map = role.as_object_mut().context("a role")?;
    for (key, value) in changes.as_object().context("changes")? {
        role_map.insert(key.clone(), value.clone());
    }
    root.write("database/roles/app", &role).await.map(drop)
}

fn asked() -> Volume {
    Volume::new()
        .secret("user", "vault:database/creds/app#username")
        .secret("a", "vault:kv/data/payments#password")
        .refresh("1s")
}

fn count(world: &World, what: &str) -> Result<usize> {
    Ok(world.vault.audit()?.iter().filter(|entry| entry.asks_for(what)).count())
}

/// Sees the lease renewed so often from now on, as on any other day.
async fn renewed(world: &World, times: usize) -> Result<()> {
    let before = count(world, "sys/leases/renew")?;
    let more = async || count(world, "sys/leases/renew").is_ok_and(|now| now >= before + times);
    eventually(SOON, "renewals go on", more).await
}

/// Follows a change of the plain secret.
async fn follows(world: &World, volume: &countersign_tests::kubelet::PodVolume, value: &str) -> Result<()> {
    world.vault.root().write("kv/data/payments", &json!({"data": {"password": value}})).await?;
    world.node.arrives(volume, "a", value).await
}

/// One user, one lease, and nobody was asked more than on any other day.
fn calm(world: &World, user: &str) -> Result<()> {
    let users = world.postgres.as_ref().context("PostgreSQL")?.dynamic_users()?;
    ensure!(users == [user], "another user, or none: {users:?}");
    let (logins, renewals) = (count(world, "auth/jwt/login")?, count(world, "sys/leases/renew")?);
    ensure!(logins <= 4, "{logins} logins");
    ensure!(renewals <= 40, "{renewals} renewals");
    Ok(())
}

/// To the agent every SVID has ended, and every certificate of others too. What it holds is kept, and taken up again.
async fn a_day_forward() -> Result<()> {
    with_hands(async |world, hands| {
        let mut volume = world.node.published(&pod("api-1"), asked()).await?;
        let user = read_file(&volume.target(), "user")?;
        renewed(world, 1).await?;
        hands.turn("+1d")?;
        let noticed = async || world.node.said().contains("expired") || world.node.said().contains("ended");
        eventually(SOON, "the agent has seen it", noticed).await?;
        ensure!(read_file(&volume.target(), "user")? == user, "files stay");
        hands.turn("+0")?;
        follows(world, &volume, "second").await?;
        renewed(world, 2).await?;
        ensure!(read_file(&volume.target(), "user")? == user, "the same user all the time");
        calm(world, &user)?;
        volume.unpublish(SOON).await?;
        gone(world).await
    })
    .await
}

/// To the agent nothing is due for another hour by the time of day; leases are renewed all the same.
async fn an_hour_back() -> Result<()> {
    with_hands(async |world, hands| {
        let mut volume = world.node.published(&pod("api-1"), asked()).await?;
        let user = read_file(&volume.target(), "user")?;
        hands.turn("-1h")?;
        renewed(world, 3).await?;
        follows(world, &volume, "second").await?;
        ensure!(read_file(&volume.target(), "user")? == user, "the same user all the time");
        calm(world, &user)?;
        volume.unpublish(SOON).await?;
        gone(world).await
    })
    .await
}

/// Issuer and node have another time of day than Vault: a little is forgiven, and more is named.
async fn another_time_than_vault() -> Result<()> {
    let folder = folder()?;
    let hands = Hands::new(folder.path())?;
    hands.turn("+45")?;
    let ahead = Some(program(&hands, Moves::TimeOfDay)?);
    let node = Setup { agent_binary: ahead.clone(), issuer_binary: ahead, ..Setup::default() };
    in_world(Plan { node, ..Plan::default() }, async |world| {
        let mut volume = world.node.published(&pod("api-1"), one("vault:kv/data/payments#password")).await?;
        volume.unpublish(SOON).await?;
        hands.turn("+480")?;
        // Another identity: this one has a token by now.
        let role = world.vault.root().read("auth/jwt/role/payments_api").await?;
        let mut role = role["data"].clone();
        role["bound_subject"] = json!("spiffe://example.org/ns/payments/sa/reports");
        world.vault.root().write("auth/jwt/role/payments_reports", &role).await?;
        let other = Pod::new("payments", "reports-1", "reports");
        let status = refusal_of(&world.node, &other, one("vault:kv/data/payments#password")).await?;
        says(&status, Code::PermissionDenied, &["clocks", "leeway"])
    })
    .await
}

async fn gone(world: &World) -> Result<()> {
    let postgres = world.postgres.as_ref().context("PostgreSQL")?;
    let gone = async || postgres.dynamic_users().is_ok_and(|users| users.is_empty());
    eventually(Duration::from_secs(60), "no lease is forgotten", gone).await
}
