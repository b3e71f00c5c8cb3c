//! Admission on a real API server, without nodes: what pods are given and what is refused, first by the policy, then by
//! the policy as beta and by the webhook, which must come to the same. A Kubernetes that has no such policies has the
//! webhook alone.

#![expect(clippy::indexing_slicing, reason = "a JSON value answers null for what is not there")]

mod beta;
mod nodes;
mod server;
mod workloads;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use countersign_cluster::admission::judge;
use countersign_cluster::admission::table::{self, Given, Refused};
use countersign_cluster::cases::tell;
use countersign_cluster::namespace::{Entered, enter};
use countersign_cluster::version::Version;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

use crate::server::Server;

type Outcomes = Vec<(String, Result<()>)>;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    let place = match enter()? {
        Entered::Inside(place) => place,
        Entered::Ended(code) => return Ok(code),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcomes = runtime.block_on(async {
        let version = Version::chosen()?;
        tell(&match version.policy() {
            Some(api) => format!("on Kubernetes {version}, with policies {api}"),
            None => {
                format!("on Kubernetes {version}, which has no MutatingAdmissionPolicy: by the webhook alone")
            }
        });
        let mut server = Server::start(&place, version).await?;
        let mut outcomes = Outcomes::new();
        let result = all(&mut server, version, &mut outcomes).await;
        outcomes
            .push(("all parts were tried".to_owned(), result.map_err(|error| error.context(server.said()))));
        anyhow::Ok(outcomes)
    })?;
    let trials = outcomes.into_iter().map(|(name, outcome)| {
        Trial::test(name, move || outcome.map_err(|error| Failed::from(format!("{error:#}"))))
    });
    Ok(libtest_mimic::run(&arguments, trials.collect()).exit_code())
}

async fn all(server: &mut Server, version: Version, outcomes: &mut Outcomes) -> Result<()> {
    // Before there is any policy of ours.
    let old = workloads::before(server).await;
    outcomes.push(("workloads from before are there".to_owned(), old));

    let mut made = Vec::new();
    for &way in version.ways() {
        server.install(way).await?;
        if way == "webhook" {
            outcomes.push(("webhook: no other pod depends on it".to_owned(), server.nobody_serves().await));
            server.serve_webhook().await?;
        }
        made.push(tables(server, way, outcomes).await?);
        if let Some(api) = version.policy() {
            outcomes.push((format!("{way}: a container that comes later"), server.added_later(api).await));
        }
        // What is the same whichever way pods are given their volume.
        if made.len() == 1 {
            workloads::cases(server, outcomes).await;
            outcomes
                .push(("the types of all expressions are sound".to_owned(), server.types_are_sound().await));
            outcomes
                .push(("the largest pods are within the limits".to_owned(), workloads::large(server).await));
            nodes::cases(server, outcomes).await?;
        }
        if way == "policy" && version.beta_beside() {
            beta::in_its_place(server).await?;
            made.push(tables(server, "policy v1beta1", outcomes).await?);
        }
    }
    if let Some((first, others)) = made.split_first()
        && !others.is_empty()
    {
        for (name, pod) in first {
            let differs = others.iter().find(|way| way.get(name) != Some(pod));
            let same = differs.map_or(Ok(()), |other| {
                Err(anyhow::anyhow!("first way:\n{pod:#}\nanother:\n{:#?}", other.get(name)))
            });
            outcomes.push((format!("the same all ways: {name}"), same));
        }
    }
    outcomes.push(("injection that is missing is told".to_owned(), server.missing().await));
    Ok(())
}

/// All pods of both tables: what those that are let in look like.
async fn tables(server: &Server, way: &str, outcomes: &mut Outcomes) -> Result<BTreeMap<String, Value>> {
    let mut pods = BTreeMap::new();
    for case in table::read::<Given>("given.yaml")? {
        let name = case.pod.name.clone();
        let judged = judge::given(server.client(), &case).await;
        let outcome = judged.map(|pod| drop(pods.insert(name.clone(), pod)));
        outcomes.push((format!("{way}: given: {name}"), outcome));
    }
    for case in table::read::<Refused>("refused.yaml")? {
        let outcome = judge::refused(server.client(), &case).await;
        outcomes.push((format!("{way}: refused: {}", case.pod.name), outcome));
    }
    ensure!(pods.len() > 10, "a table with next to nothing in it proves nothing");
    Ok(pods)
}
