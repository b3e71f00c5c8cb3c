//! What a publish takes beyond the answers of Vault and of the issuer.
//!
//! The time is that of kubelet's call. Vault's part is Vault's own word: the time between the request's and the answer's
//! line in its audit file. The issuer's is the agent's clock around each request for an SVID, those for logins among them.
//! Both are taken off the publish they belong to, for no two overlap. Beside it stands what a bare client takes for the
//! same requests, connection kept open, and what a `Probe` of the driver takes: the least that kubelet's call can be.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::Instant;

use countersign_tests::bench::calls::{Calls, Clocks, end, prepared};
use countersign_tests::bench::report::{Quantity, Row};
use countersign_tests::bench::times::Times;
use countersign_tests::node::SOON;
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::reader::read_file;

use super::Effort;
use super::setting::{secret, start, volume};
use crate::api::Api;
use crate::audit;
use crate::world::World;

/// Publishes before the first that counts.
const WARM_UP: usize = 5;

pub(super) async fn measure(effort: Effort) -> Result<Vec<Row>> {
    let mut world = start(false).await?;
    let rounds = effort.of(300, 40);
    let cold = series(&mut world, rounds, Kind::Cold).await?;
    let warm = series(&mut world, rounds, Kind::Warm).await?;
    Ok([
        rows(&cold, "first publish, beyond login and read", 3)?,
        rows(&warm, "identity known, beyond the read", 1)?,
    ]
    .concat())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An account that nobody has seen: a login, and a read.
    Cold,
    /// An account with a token: a read.
    Warm,
}

/// One publish, and what else was timed beside it.
#[derive(Debug, Clone, Copy)]
struct Sample {
    whole: Duration,
    clocks: Clocks,
    vault: Duration,
    bare: Duration,
    probe: Duration,
}

impl Sample {
    fn beyond(&self) -> Duration {
        self.whole.saturating_sub(self.clocks.identity).saturating_sub(self.vault)
    }

    /// The part of it that the agent spent on its reads and not in Vault: its client's way there and back, and in a first
    /// publish the SVID for the login.
    fn reading(&self) -> Duration {
        self.clocks.fetch.saturating_sub(self.vault)
    }
}

fn rows(samples: &[Sample], what: &str, target: u64) -> Result<Vec<Row>> {
    let of = |part: &dyn Fn(&Sample) -> Duration| Times::of(samples.iter().map(part).collect());
    let (whole, beyond) = (of(&|sample| sample.whole)?, of(&Sample::beyond)?);
    let (identity, vault) = (of(&|sample| sample.clocks.identity)?, of(&|sample| sample.vault)?);
    let (bare, probe, reading) =
        (of(&|sample| sample.bare)?, of(&|sample| sample.probe)?, of(&Sample::reading)?);
    let row = |percent| {
        let at = |times: &Times| Quantity::Time(times.percentile(percent));
        let remark = format!(
            "in all {} with {} in Vault and {} for the identity; reads by the agent's clock {} beyond Vault's; a Probe {}; {} publishes",
            at(&whole),
            at(&vault),
            at(&identity),
            at(&reading),
            at(&probe),
            whole.count()
        );
        Row::new(format!("{what}, p{percent}"), at(&beyond))
            .floor(at(&bare), "a bare client, Vault included")
            .remark(remark)
    };
    Ok(vec![row(50), row(99).target(Quantity::Time(Duration::from_millis(target)))])
}

async fn series(world: &mut World, rounds: usize, kind: Kind) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    // A pod that stays keeps its account's token.
    secret(world, "kept", "x").await?;
    let mut keeper = volume(world, "keeper", "warm", &["kept"], "24h");
    keeper.publish(SOON).await?;
    let (client, calls) = (Bare::new(world).await?, Calls::of(&world.node)?);
    for round in 0..WARM_UP + rounds {
        let name = format!("s-{kind:?}-{round}").to_lowercase();
        secret(world, &name, "correct horse battery staple").await?;
        let account = if kind == Kind::Cold { format!("cold-{round}") } else { "warm".to_owned() };
        let mut volume = volume(world, &name, &account, &[&name], "24h");
        let (bare, probe) = (client.measure(kind, &name).await?, calls.probe().await?);
        // The file's length and not its lines: to parse thousands of them would leave all caches cold for the publish.
        let (audited, clocks) = (world.vault.audited()?, Clocks::of(&world.node).await?);
        let request = prepared(&world.node, &volume)?;
        let whole = calls.publish(request).await.context("publish")?;
        let clocks = Clocks::of(&world.node).await?.since(&clocks);
        let vault = audit::answered(&world.vault.audit_since(audited)?)?;
        end(&mut volume).await?;
        if round >= WARM_UP {
            samples.push(Sample { whole, clocks, vault, bare, probe });
        }
    }
    keeper.unpublish(SOON).await?;
    Ok(samples)
}

/// A client that does the same and nothing else.
struct Bare {
    api: Api,
    token: Api,
    jwt: String,
}

impl Bare {
    /// With a JWT-SVID that a pod got for it.
    async fn new(world: &World) -> Result<Self> {
        let pod = Pod::new("payments", "bare", "bare");
        let mut volume = world.node.published(&pod, Volume::new().jwt("jwt", "vault")).await?;
        let jwt = read_file(&volume.target(), "jwt")?;
        volume.unpublish(SOON).await?;
        let api = world.vault.anonymous().clone();
        let token = login(&api, &jwt).await?;
        Ok(Self { token: api.with_token(&token), api, jwt })
    }

    async fn measure(&self, kind: Kind, secret: &str) -> Result<Duration> {
        let path = format!("kv/data/{secret}");
        let began = Instant::now();
        let answer = match kind {
            Kind::Cold => self.api.with_token(&login(&self.api, &self.jwt).await?).read(&path).await?,
            Kind::Warm => self.token.read(&path).await?,
        };
        let took = began.elapsed();
        ensure!(answer.pointer("/data/data/password").is_some(), "the secret");
        Ok(took)
    }
}

async fn login(api: &Api, jwt: &str) -> Result<String> {
    let answer = api.write("auth/jwt/login", &json!({"role": "bench", "jwt": jwt})).await?;
    let token = answer.pointer("/auth/client_token").and_then(serde_json::Value::as_str);
    token.map(str::to_owned).context("a token")
}
