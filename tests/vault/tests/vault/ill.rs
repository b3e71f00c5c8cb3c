//! One secret of a volume will not do any more. What has nothing to do with it goes on, SVIDs above all, and what has is
//! never of two answers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case_within};
use countersign_tests::kubelet::PodVolume;
use countersign_tests::node::{SOON, Setup, eventually};
use countersign_tests::pods::Volume;
use countersign_tests::reader::{Generation, read};
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::{Map, json};

use crate::asking::{counted, counts_beyond, pod};
use crate::leases::{gone, lives};

pub(crate) fn cases() -> Vec<Case> {
    let limit = Duration::from_secs(400);
    vec![
        case_within(limit, "ill::a_field_is_gone_or_a_policy", Needs::Root, a_field_is_gone_or_a_policy),
        case_within(limit, "ill::an_agent_restarts_while_vault_is_down", Needs::Root, an_agent_restarts),
    ]
}

/// Longer than half of an SVID's life.
const RENEWED: Duration = Duration::from_secs(60);
const REPUBLISH: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_millis(200);

fn asked() -> Volume {
    let line = "{{ secret(\"vault:database/creds/app\").username }} {{ secret(\"vault:database/creds/app\").password }} {{ secret(\"vault:kv/data/payments\").username }}";
    Volume::new()
        .x509()
        .secret("user", "vault:kv/data/payments#username")
        .secret("password", "vault:kv/data/payments#password")
        .template("line", line)
        .refresh("1s")
}

fn plan() -> Plan {
    let store = Map::from_iter([("leaseOverlap".to_owned(), json!("2s"))]);
    Plan { database: true, store, node: Setup { x509_ttl: "1m", ..Setup::default() }, ..Plan::default() }
}

fn texts<const N: usize>(files: &Generation, names: [&str; N]) -> Result<[String; N]> {
    let mut texts = [const { String::new() }; N];
    for (text, name) in texts.iter_mut().zip(names) {
        *text = String::from_utf8(files.get(name).with_context(|| name.to_owned())?.clone())?;
    }
    Ok(texts)
}

/// The next SVID: certificate and key have changed with the same step, and the roots have not.
async fn renewed(volume: &PodVolume) -> Result<()> {
    let names = ["tls.crt", "tls.key", "ca.crt"];
    let before = texts(&read(&volume.target())?, names)?;
    let differs = async || {
        let now = read(&volume.target()).and_then(|files| texts(&files, names));
        now.is_ok_and(|[chain, key, roots]| chain != before[0] && key != before[1] && roots == before[2])
    };
    eventually(RENEWED, "the next SVID", differs).await
}

/// The database user in the template, which opens the database, and the name beside it.
fn line(world: &World, volume: &PodVolume) -> Result<(String, String)> {
    let [line] = texts(&read(&volume.target())?, ["line"])?;
    let mut words = line.split(' ').map(str::to_owned);
    let mut next = || words.next().context("three words");
    let (user, password, name) = (next()?, next()?, next()?);
    world.postgres.as_ref().context("PostgreSQL")?.sql_as(&user, &password, "SELECT 1")?;
    Ok((user, name))
}

fn pair(volume: &PodVolume) -> Result<[String; 2]> {
    texts(&read(&volume.target())?, ["user", "password"])
}

async fn a_field_is_gone_or_a_policy() -> Result<()> {
    in_world(plan(), async |world| {
        // Credentials that are replaced every few seconds.
        lives(world, "6s", "12s").await?;
        let mut volume = world.node.published(&pod("api-1"), asked()).await?;
        let (first, name) = line(world, &volume)?;
        ensure!(name == "app" && pair(&volume)? == ["app", "first-password"]);

        let root = world.vault.root();
        root.write("kv/data/payments", &json!({"data": {"password": "second"}})).await?;
        counts_beyond(&world.node, "countersign_turns_total", &["result=\"not_found\""], 1.0).await?;
        let stale = counted(&world.node, "countersign_volumes_stale", &[]).await?;
        ensure!((0.5..1.5).contains(&stale), "{stale} volumes are stale");
        renewed(&volume).await.context("a field is gone")?;
        renewed(&volume).await.context("a field is gone, and one SVID with it")?;
        ensure!(pair(&volume)? == ["app", "first-password"], "they are of one answer: {:?}", pair(&volume)?);
        let (second, name) = line(world, &volume).context("what is left of the template goes on")?;
        ensure!(second != first && name == "app", "{second} {name}");

        root.write("kv/data/payments", &json!({"data": {"username": "new", "password": "third"}})).await?;
        world.node.arrives(&volume, "password", "third").await?;
        ensure!(pair(&volume)? == ["new", "third"] && line(world, &volume)?.1 == "new", "all is fresh again");

        let policy = root.read("sys/policies/acl/payments-api").await?["data"]["policy"].clone();
        let text = policy.as_str().context("a policy")?;
        let less = json!({"policy": text.replace("kv/data/payments", "kv/data/other")});
        root.write("sys/policies/acl/payments-api", &less).await?;
        counts_beyond(&world.node, "countersign_turns_total", &["result=\"denied\""], 0.0).await?;
        renewed(&volume).await.context("the policy is another")?;
        ensure!(pair(&volume)? == ["new", "third"], "{:?}", pair(&volume)?);
        root.write("sys/policies/acl/payments-api", &json!({"policy": policy})).await?;
        root.write("kv/data/payments", &json!({"data": {"username": "newer", "password": "fourth"}})).await?;
        world.node.arrives(&volume, "password", "fourth").await?;
        volume.unpublish(SOON).await?;
        gone(world).await
    })
    .await
}

/// The new one knows nothing but what the files hold.
async fn an_agent_restarts() -> Result<()> {
    in_world(plan(), async |world| {
        let mut volume = world.node.published(&pod("api-1"), asked()).await?;
        let names = ["user", "password", "line"];
        let before = texts(&read(&volume.target())?, names)?;
        world.vault.kill()?;
        world.node.kill_agent()?;
        world.node.start_agent().await?;
        for step in ["the new agent's", "the next"] {
            let target = volume.target();
            let chain = || read(&target).and_then(|files| texts(&files, ["tls.crt"]));
            let shown = chain()?;
            let differs = async || chain().is_ok_and(|now| now != shown);
            tokio::select! {
                seen = eventually(RENEWED, step, differs) => seen?,
                () = volume.republish_every(REPUBLISH) => {}
            }
        }
        let now = texts(&read(&volume.target())?, names)?;
        ensure!(now == before, "files of Vault's stay");
        counts_beyond(&world.node, "countersign_turns_total", &["result=\"store_unavailable\""], 0.0).await?;
        world.vault.resume().await?;
        world
            .vault
            .root()
            .write("kv/data/payments", &json!({"data": {"username": "new", "password": "second"}}))
            .await?;
        let fresh = async || pair(&volume).is_ok_and(|pair| pair == ["new", "second"]);
        eventually(Duration::from_secs(90), "all is fresh again", fresh).await?;
        ensure!(line(world, &volume)?.1 == "new");
        volume.unpublish(SOON).await?;
        world.vault.root().write("sys/leases/revoke-prefix/database", &json!({"sync": true})).await?;
        gone(world).await
    })
    .await
}
