//! An API server that hangs: what runs goes on, what is said names it, and nothing is restarted.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::node;
use countersign_cluster::pods::{LIMIT, uid, until};
use countersign_cluster::world::{Case, Kind, World, case};
use countersign_tests::http;
use k8s_openapi::api::core::v1::Pod;
use rustix::process::Signal;

use crate::fault::restarts;
use crate::restart::NODE_LABEL;

pub(crate) fn cases() -> Vec<Case> {
    vec![case("api_server_that_hangs_takes_nothing_from_pods", Kind::Node, hangs)]
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

fn address(pod: &Pod) -> Result<IpAddr> {
    let status = pod.status.as_ref().context("a status")?;
    Ok(status.pod_ip.as_deref().context("an address")?.parse()?)
}
