//! An API server that hangs or refuses: what runs goes on, what is said names it, and nothing is restarted in vain.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use anyhow::{Context, Result, ensure};
use countersign_cluster::node;
use countersign_cluster::pods::{LIMIT, Space, uid, until};
use countersign_cluster::refusing::{Answer, Refusing, hasty, most};
use countersign_cluster::world::{Case, Kind, World, case};
use countersign_tests::http;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Patch, PatchParams};
use rustix::process::Signal;
use serde_json::json;

use crate::fault::restarts;
use crate::restart::NODE_LABEL;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("api_server_that_hangs_takes_nothing_from_pods", Kind::Node, hangs),
        case("api_server_that_answers_429_is_asked_again_when_it_says", Kind::Node, busy),
        case("api_server_that_answers_403_is_named_with_the_right", Kind::Node, forbids),
        case("api_server_that_answers_500_to_an_agent_that_has_just_started", Kind::Node, broken),
    ]
}

const ASKS: [(&str, &str); 1] = [("jwt.countersign.dev/token", "https://api.example.com")];

/// The worst of moments: an agent that has just been started knows neither roots nor its volumes.
async fn hangs(world: Arc<World>) -> Result<()> {
    let space = world.space("hangs-api").await?;
    let pod = space.start("runs", &ASKS).await?;
    let volumes = node::volumes(uid(&pod)?)?;
    let token = volumes.first().context("a volume")?.point.join("token");
    let before = fs::read(&token)?;
    let system = world.system().await?;
    let old = restarts(&system).await?;
    let agent = system.ready(NODE_LABEL).await?.into_iter().next().context("a pod of driver and agent")?;
    let address = SocketAddr::new(address(&agent)?, 9410);
    let servers = node::processes("kube-apiserver")?;
    let [server] = *servers.as_slice() else { anyhow::bail!("{} API servers", servers.len()) };
    let pid = node::settled(node::agent).await?;
    node::signal(server, Signal::STOP)?;
    let seen = async {
        node::signal(pid, Signal::KILL)?;
        node::replaced(pid, node::agent).await?;
        let told = async || {
            let answer = http::get(address, "/readyz").await.ok();
            Ok(answer
                .filter(|(code, text)| *code == 503 && text.contains("API server"))
                .map(|(_, text)| text))
        };
        let text = until(LIMIT, "its readiness names the API server", told).await?;
        ensure!(text.contains("[-] issuer: ") && text.contains("countersign-bundle"), "{text}");
        // Alive all the same: nothing restarts it, and what the pod has it keeps.
        http::get_ok(address, "/healthz").await?;
        ensure!(fs::read(&token)? == before, "the pod's file is another");
        Ok(())
    };
    let seen = seen.await;
    node::signal(server, Signal::CONT)?;
    seen?;
    until(LIMIT, "ready", async || Ok(http::get_ok(address, "/readyz").await.ok())).await?;
    space.start("next", &ASKS).await?;
    ensure!(space.file("runs", "token").await?.split('.').count() == 3);
    let now = restarts(&system).await?;
    ensure!(now == old + 1, "{now} restarts in place of {}", old + 1);
    for pod in ["runs", "next"] {
        space.delete(pod).await?;
    }
    space.remove().await
}

/// Longer than any pause of ours would be.
const WAIT: Duration = Duration::from_secs(12);

/// Its own limits are reached: in words that are no object, as the API server has them.
async fn busy(world: Arc<World>) -> Result<()> {
    let answer = Answer {
        status: StatusCode::TOO_MANY_REQUESTS,
        retry_after: Some(WAIT),
        body: "Too many requests, please try again later.\n".to_owned(),
    };
    let told =
        ["identity: ", "can't be reviewed", "API server 10.96.0.1:443: it answered 429 Too Many Requests"];
    refused(&world, "busy", answer, &told, async |refusing| {
        let again = async || Ok((most(&refusing.calls()) > 2).then_some(()));
        until(LIMIT, "something asked for a third time", again).await?;
        let hasty = hasty(&refusing.calls(), WAIT);
        ensure!(hasty.is_empty(), "asked sooner than it wanted to be: {hasty:#?}");
        Ok(())
    })
    .await
}

/// As by an authorizer that has lost its mind: no right is left of any.
async fn forbids(world: Arc<World>) -> Result<()> {
    let answer = object(StatusCode::FORBIDDEN, "Forbidden", "forbidden: nobody may do anything");
    let told = [
        "identity: ",
        "it answered 403 Forbidden: forbidden: nobody may",
        "the right to create tokenreviews",
    ];
    refused(&world, "forbids", answer, &told, async |_| Ok(())).await
}

/// As where etcd is too slow, to an agent that knows neither roots nor its volumes.
async fn broken(world: Arc<World>) -> Result<()> {
    let answer = object(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "etcdserver: request timed out");
    let space = world.space("broken").await?;
    let pod = space.start("runs", &ASKS).await?;
    let system = world.system().await?;
    let old = restarts(&system).await?;
    let refusing = Refusing::start(world.node()?.files(), answer).await?;
    let told = async {
        let pid = node::settled(node::agent).await?;
        node::signal(pid, Signal::KILL)?;
        node::replaced(pid, node::agent).await?;
        space.create(&space.by_hand("waits", &json!({ASKS[0].0: ASKS[0].1}))).await?;
        let words =
            ["FailedMount", "identity: trust bundle ConfigMap", "it answered 500", "etcdserver: request"];
        space.event("waits", &words).await?;
        ensure!(space.file("runs", "token").await?.split('.').count() == 3);
        Ok(())
    };
    let told = told.await;
    drop(refusing);
    told?;
    space.running("waits").await?;
    let now = restarts(&system).await?;
    ensure!(now == old + 1, "{now} restarts in place of {}", old + 1);
    nothing_left(&space, &pod).await?;
    space.remove().await
}

/// What an API server says that speaks of an object.
fn object(status: StatusCode, reason: &str, message: &str) -> Answer {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": status.as_u16(),
    });
    Answer { status, retry_after: None, body: body.to_string() }
}

/// With a pod that runs, and another that is made while all of ours are refused.
async fn refused(
    world: &World,
    case: &str,
    answer: Answer,
    told: &[&str],
    look: impl AsyncFnOnce(&Refusing) -> Result<()>,
) -> Result<()> {
    let space = world.space(case).await?;
    let (store, key) = (world.store().await?, format!("{}.live", space.name()));
    store.write(&key, &json!({"password": "before"})).await?;
    let reference = format!("sops:{key}#password");
    let asks = [ASKS[0], ("secret.countersign.dev/p", &reference), ("countersign.dev/refresh", "1s")];
    let pod = space.start("runs", &asks).await?;
    let system = world.system().await?;
    let old = restarts(&system).await?;
    let refusing = Refusing::start(world.node()?.files(), answer).await?;
    let seen = async {
        // Watches that are open are used now, and with it cut.
        let stir = json!({"metadata": {"annotations": {"e2e.test/stirred": case}}});
        let maps = system.api::<ConfigMap>();
        maps.patch("countersign-bundle", &PatchParams::default(), &Patch::Merge(stir)).await?;
        space.create(&space.by_hand("waits", &json!({ASKS[0].0: ASKS[0].1}))).await?;
        space.event("waits", &[&["FailedMount"], told].concat()).await?;
        // What needs no API server of ours goes on: kubelet brings the store's files.
        store.write(&key, &json!({"password": "meanwhile"})).await?;
        space.file_becomes("runs", "p", "meanwhile").await?;
        ensure!(space.file("runs", "token").await?.split('.').count() == 3);
        look(&refusing).await
    };
    let seen = seen.await;
    drop(refusing);
    seen?;
    space.running("waits").await?;
    until(LIMIT, "a release that is ready", async || {
        let ready = system.ready("app.kubernetes.io/component=issuer").await?.len();
        Ok((ready == 2 && !system.ready(NODE_LABEL).await?.is_empty()).then_some(()))
    })
    .await?;
    let now = restarts(&system).await?;
    ensure!(now == old, "{now} restarts in place of {old}");
    nothing_left(&space, &pod).await?;
    space.remove().await
}

/// Deletes both pods: their volumes are gone with them.
async fn nothing_left(space: &Space, runs: &Pod) -> Result<()> {
    let waits = space.api::<Pod>().get("waits").await?;
    for name in ["runs", "waits"] {
        space.delete(name).await?;
    }
    for pod in [runs, &waits] {
        let gone = async || Ok(node::volumes(uid(pod)?)?.is_empty().then_some(()));
        until(LIMIT, "its volume unmounted", gone).await?;
    }
    Ok(())
}

fn address(pod: &Pod) -> Result<IpAddr> {
    let status = pod.status.as_ref().context("a status")?;
    Ok(status.pod_ip.as_deref().context("an address")?.parse()?)
}
