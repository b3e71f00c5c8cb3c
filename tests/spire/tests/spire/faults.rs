//! What goes wrong with SPIRE, and what pods see of it: nothing, or a sentence that says what to do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use countersign_cluster::pods::{LIMIT, Space, is_ready, until};
use countersign_spire_tests::entry::Entry;
use countersign_spire_tests::files::Files;
use countersign_spire_tests::page::{self, Broker};
use countersign_spire_tests::spire::{BROKER_SOCKET, US};
use countersign_spire_tests::world::{Case, Kind, World, case, files, follow};
use countersign_tests::processes::{AGENT_UID, Process, privileged};
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::net::UnixStream;

use crate::life::{INJECT, SOON, X509, id};
use crate::sources::said;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("an_agent_that_dies_changes_no_file", Kind::Alone, agent_restart),
        case("an_agent_attested_anew_takes_nobodys_files", Kind::Alone, attested_anew),
        case("a_server_away_for_longer_than_an_svid_lives", Kind::Alone, server_away),
        case("our_own_svid_that_has_ended_is_said_and_changes_no_file", Kind::Alone, own_ended),
        case("whoever_else_listens_on_the_socket_is_refused", Kind::Alone, impostor),
        case("what_spires_agent_lacks_is_said", Kind::Alone, misconfigured),
        case("a_namespace_without_rights_is_told_which", Kind::Harmless, no_rights),
        // The last, for it leaves a node that has much to clear away.
        case("two_hundred_and_fifty_pods_at_once_have_their_svids", Kind::Alone, at_once),
    ]
}

/// Pods of five service accounts, which all have entries.
async fn many(world: &World, space: &Space, pods: usize) -> Result<Vec<Pod>> {
    for account in 0..5 {
        let account = format!("app-{account}");
        space.account(&account).await?;
        world.spire.create(&Entry::account(space.name(), &account))?;
    }
    let starting = (0..pods).map(async |n| {
        let mut manifest = space.manifest(&format!("pod-{n}"), &[INJECT, X509]);
        manifest["spec"]["serviceAccountName"] = json!(format!("app-{}", n % 5));
        space.start_from(&manifest).await
    });
    try_join_all(starting).await
}

fn all(pods: &[Pod]) -> Result<Vec<Files>> {
    pods.iter().map(files).collect()
}

async fn agent_restart(world: Arc<World>) -> Result<()> {
    let space = world.space("agent-dies").await?;
    let pods = many(&world, &space, 100).await?;
    let mut followers = pods.iter().map(follow).collect::<Result<Vec<_>>>()?;
    let before = all(&pods)?;
    world.spire.kill_agent().await?;
    ensure!(all(&pods)? == before);
    world.spire.start_agent().await?;
    // SPIRE keeps no key of a workload on disk, so everybody is signed anew: once, as one set.
    for (follower, before) in followers.iter_mut().zip(&before) {
        let new = |files: &Files| files.text("tls.crt") != before.text("tls.crt");
        let files = follower.becomes(SOON, "signed anew", new).await?;
        ensure!(follower.swaps == 1, "{} swaps", follower.swaps);
        ensure!(files.identity()? == before.identity()? && files.text("ca.crt") == before.text("ca.crt"));
    }
    // No herd: hardly a stream was begun since but those that are open.
    let ended = world.spire.ended_streams().await?;
    ensure!(ended < 50.0, "{ended} streams of {} pods were begun in vain", pods.len());
    space.delete("pod-0").await?;
    let counted = async || Ok((world.spire.ended_streams().await? > ended).then_some(()));
    until(SOON, "counting a stream that ends", counted).await?;
    followers.remove(0);
    // Whoever comes now is served as before.
    world.spire.create(&Entry::account(space.name(), "default"))?;
    space.start("late", &[X509]).await?;
    // And the streams are there again: a change reaches everybody, and is the next that is written.
    let roots = before[0].blocks("ca.crt").len();
    world.spire.prepare("x509")?;
    for follower in &mut followers {
        follower.becomes(SOON, "given the new root", |files| files.blocks("ca.crt").len() > roots).await?;
        ensure!(follower.swaps == 2, "{} swaps", follower.swaps);
    }
    space.remove().await
}

async fn at_once(world: Arc<World>) -> Result<()> {
    const PODS: usize = 250;
    /// Two cores start them all.
    const LONG: Duration = Duration::from_secs(600);
    let space = world.space("at-once").await?;
    world.spire.create(&Entry::account("at-once", "default"))?;
    let creating =
        (0..PODS).map(async |n| space.create(&space.manifest(&format!("pod-{n}"), &[INJECT, X509])).await);
    try_join_all(creating).await?;
    let mut pods = Vec::new();
    for n in 0..PODS {
        // In whatever order kubelet takes them: the first may be the last.
        let name = format!("pod-{n}");
        let running = async || Ok(space.api::<Pod>().get_opt(&name).await?.filter(is_ready));
        pods.push(until(LONG, "running", running).await?);
    }
    for files in all(&pods)? {
        ensure!(files.identity()? == id("at-once"), "{}", files.identity()?);
    }
    space.remove().await
}

async fn attested_anew(world: Arc<World>) -> Result<()> {
    let space = world.space("attested").await?;
    world.spire.create(&Entry::account("attested", "default"))?;
    let pod = space.start("api", &[X509, ("countersign.dev/on-revoked", "wipe")]).await?;
    let (before, mut follower) = (files(&pod)?, follow(&pod)?);
    let withdrawn = [r#"result="withdrawn""#];
    let counted = world.counted("countersign_identity_push_total", &withdrawn).await?;
    world.spire.kill_agent().await?;
    world.spire.attest(Broker::Ours).await?;
    // The new agent signs anew. No generation on the way there is without its key.
    let broken = std::cell::Cell::new(false);
    follower
        .becomes(SOON, "signed anew", |files| {
            broken.set(broken.get() || files.identity().is_err());
            broken.get() || files.text("tls.crt") != before.text("tls.crt")
        })
        .await?;
    ensure!(!broken.get() && files(&pod)?.identity()? == id("attested"), "{:?}", files(&pod)?.0.keys());
    ensure!(world.counted("countersign_identity_push_total", &withdrawn).await? <= counted);
    space.delete("api").await?;
    space.remove().await
}

async fn server_away(world: Arc<World>) -> Result<()> {
    let space = world.space("server").await?;
    world.spire.create(&Entry::account("server", "default").living(20))?;
    let asks =
        [X509, ("secret.countersign.dev/p", "sops:server.db#password"), ("countersign.dev/refresh", "1s")];
    let pod = space.start("api", &asks).await?;
    let mut follower = follow(&pod)?;
    world.spire.kill_server().await?;
    let outcome = async {
        // It is told while there is time, and when there is none left the last files stay.
        space.event("api", &["IdentityEnding", &id("server"), "could not be renewed", "SPIRE"]).await?;
        let held = files(&pod)?;
        let ends = held.ends()?;
        until(SOON, "past its end", async || Ok((now() > ends).then_some(()))).await?;
        ensure!(held.identity()? == id("server") && held.text("p") == "for-server");
        // No store is asked in its name any more.
        let read = [r#"store="sops""#];
        let reads = world.counted("countersign_fetch_total", &read).await?;
        let turns = world.counted("countersign_turns_total", &[]).await?;
        until(LIMIT, "tried again", async || {
            let now = world.counted("countersign_turns_total", &[]).await?;
            Ok((now >= turns + 2.0).then_some(()))
        })
        .await?;
        ensure!(world.counted("countersign_fetch_total", &read).await? <= reads, "the store was asked");
        // Nobody new is given what has ended.
        space.create(&space.manifest("late", &[INJECT, X509])).await?;
        space.event("late", &["FailedMount"]).await?;
        Ok::<_, anyhow::Error>(held)
    };
    let outcome = outcome.await;
    world.spire.start_server().await?;
    let held = outcome?;
    follower.becomes(SOON, "renewed", |files| files.text("tls.crt") != held.text("tls.crt")).await?;
    space.running("late").await?;
    space.remove().await
}

async fn own_ended(world: Arc<World>) -> Result<()> {
    const LIFE: u32 = 20;
    let space = world.space("own").await?;
    world.spire.create(&Entry::account("own", "default"))?;
    let pod = space.start("before", &[X509]).await?;
    let before = files(&pod)?;
    let agent = world.spire.entry(US)?;
    world.spire.delete(&agent)?;
    let outcome = async {
        let given = "SPIRE has given this agent its own SVID";
        let times = said(&world).await?.matches(given).count();
        let short = world.spire.create(&Entry::ours().living(LIFE))?;
        let again = async || Ok((said(&world).await?.matches(given).count() > times).then_some(()));
        until(SOON, "given a short SVID", again).await?;
        world.spire.delete(&short)?;
        // What was given before the entry was gone lives on for that long.
        let refused = "can't be renewed";
        let refused = async || {
            let log = said(&world).await?;
            Ok(log.rsplit(given).next().is_some_and(|after| after.contains(refused)).then_some(()))
        };
        until(SOON, "refused another", refused).await?;
        let end = now() + Duration::from_secs(LIFE.into());
        until(SOON, "past its end", async || Ok((now() > end).then_some(()))).await?;
        // An open connection would serve on: whoever it was made as.
        world.spire.kill_agent().await?;
        world.spire.start_agent().await?;
        space.create(&space.manifest("late", &[INJECT, X509])).await?;
        space.event("late", &["FailedMount", "own SVID has ended", "registration entry"]).await?;
        ensure!(files(&pod)? == before, "a file has changed");
        Ok::<_, anyhow::Error>(())
    };
    let outcome = outcome.await;
    world.spire.create(&Entry::ours().living(24 * 3600))?;
    outcome?;
    ensure!(files(&space.running("late").await?)?.identity()? == id("own"));
    space.remove().await
}

async fn impostor(world: Arc<World>) -> Result<()> {
    let space = world.space("impostor").await?;
    world.spire.create(&Entry::account("impostor", "default"))?;
    let directory = world.directory.join("impostor");
    std::fs::create_dir_all(&directory)?;
    let written = directory.display().to_string();
    let somebody = "spiffe://example.org/somebody";
    world.spire.server(&["x509", "mint", "-spiffeID", somebody, "-write", &written])?;
    let pod = space.start("before", &[X509]).await?;
    let before = files(&pod)?;
    world.spire.kill_agent().await?;
    std::fs::remove_file(BROKER_SOCKET).ok();
    let mut command = privileged(std::path::Path::new("openssl"));
    command.args(["s_server", "-quiet", "-alpn", "h2", "-unix", BROKER_SOCKET]);
    command.arg("-cert").arg(directory.join("svid.pem")).arg("-key").arg(directory.join("key.pem"));
    let mut server = Process::start("openssl", command, &directory.join("log"))?;
    let listens = async || UnixStream::connect(BROKER_SOCKET).await.is_ok();
    server.wait_until(SOON, "listening", listens).await?;
    rustix::fs::chown(BROKER_SOCKET, None, Some(rustix::fs::Gid::from_raw(AGENT_UID)))?;
    std::fs::set_permissions(BROKER_SOCKET, std::os::unix::fs::PermissionsExt::from_mode(0o770))?;
    space.create(&space.manifest("victim", &[INJECT, X509])).await?;
    let event = space.event("victim", &["FailedMount", "which is no SPIRE agent", somebody]).await;
    let meanwhile = files(&pod)?;
    server.kill()?;
    std::fs::remove_file(BROKER_SOCKET).ok();
    world.spire.start_agent().await?;
    event?;
    ensure!(meanwhile == before, "somebody else changed files");
    // The socket is SPIRE's again, another file of the same name; its agent, started anew, signs everybody anew.
    space.running("victim").await?;
    let after = files(&pod)?;
    ensure!(after.identity()? == before.identity()? && after.text("ca.crt") == before.text("ca.crt"));
    space.remove().await
}

async fn misconfigured(world: Arc<World>) -> Result<()> {
    let space = world.space("misconfigured").await?;
    world.spire.create(&Entry::account("misconfigured", "default"))?;
    let outcome = async {
        for (pod, broker, remedy) in [
            (
                "anothers",
                Broker::Anothers,
                "add spiffe://example.org/countersign/agent to brokers in its experimental.broker block",
            ),
            ("unattested", Broker::Unattested, "an experimental.broker block that names"),
            ("missing", Broker::Missing, "is the SPIRE agent configured to have this socket"),
        ] {
            world.spire.kill_agent().await?;
            std::fs::remove_file(BROKER_SOCKET).ok();
            world.spire.attest(broker).await?;
            space.create(&space.manifest(pod, &[INJECT, X509])).await?;
            space.event(pod, &["FailedMount", remedy]).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let outcome = outcome.await;
    world.spire.kill_agent().await?;
    world.spire.attest(Broker::Ours).await?;
    outcome?;
    for pod in ["anothers", "unattested", "missing"] {
        let pod = space.running(pod).await?;
        ensure!(files(&pod)?.identity()? == id("misconfigured"));
    }
    space.remove().await
}

async fn no_rights(world: Arc<World>) -> Result<()> {
    let space = world.bare_space("unlisted").await?;
    world.spire.create(&Entry::account("unlisted", "default"))?;
    space.create(&space.manifest("outside", &[INJECT, X509])).await?;
    let words = ["FailedMount", "impersonate-via-spire", "pods in namespace unlisted", US];
    space.event("outside", &words).await?;
    world.apply(&page::rights("unlisted")?)?;
    let pod = space.running("outside").await?;
    ensure!(files(&pod)?.identity()? == id("unlisted"));
    space.delete("outside").await?;
    space.remove().await
}

#[expect(clippy::disallowed_methods, reason = "certificates end by the time of day")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}
