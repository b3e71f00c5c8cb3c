//! From SPIRE's push of a renewed SVID to the swapped files of a volume.

use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_agent::identity::Workload;
use countersign_cluster::node;
use countersign_cluster::pods::{LIMIT, uid};
use countersign_tests::bench::report::{Quantity, Row};
use countersign_tests::bench::usage::Processor;
use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep};

use super::Effort;
use super::asking::{Following, by_broker, rows};
use crate::entry::Entry;
use crate::world::{World, files, follow};

/// The word.
const TARGET: Duration = Duration::from_millis(5);
/// SPIRE renews at half of it.
const LIFE: u32 = 16;

/// Pods of the release, and a stream beside each that hears what our agent hears, at the same moment.
pub(super) async fn measure(world: &World, effort: Effort) -> Result<Vec<Row>> {
    let space = world.space("pushes").await?;
    let x509 = ("svid.countersign.dev/x509", "tls.crt,tls.key,ca.crt");
    let starting = (0..effort.volumes).map(async |n| {
        let name = format!("pod-{n}");
        let selectors = ["k8s:ns:pushes".to_owned(), format!("k8s:pod-name:{name}")];
        let selectors = selectors.each_ref().map(String::as_str);
        world.spire.create(&Entry::new(&format!("pushes/{name}"), &selectors).living(LIFE))?;
        space.start(&name, &[x509]).await
    });
    let pods = try_join_all(starting).await?;
    let following = Following::new(by_broker()?)?;
    let measuring = pods.iter().enumerate().map(async |(n, pod)| {
        let workload = Workload {
            namespace: "pushes".to_owned(),
            pod_name: format!("pod-{n}"),
            pod_uid: uid(pod)?.to_owned(),
            service_account: "default".to_owned(),
            hint: None,
        };
        let _stream = following.source.subscribe(&workload);
        following.source.x509(&workload, &[], None).await?;
        let (mut follower, mut last) = (follow(pod)?, files(pod)?);
        let mut times = Vec::new();
        for _ in 0..effort.renewals {
            let renewed = |files: &crate::files::Files| files.0.get("tls.crt") != last.0.get("tls.crt");
            last = follower.becomes(LIMIT, "renewed", renewed).await?;
            let swapped = Instant::now();
            // Whoever of the two heard it first; a swap before our own stream has heard is no time at all.
            sleep(Duration::from_millis(200)).await;
            let heard = following.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let heard = heard.get(&workload.pod_uid).copied().context("a push")?;
            times.push(swapped.saturating_duration_since(heard));
        }
        Ok::<_, anyhow::Error>(times)
    });
    let agent = u32::try_from(node::agent()?)?;
    let processor = || Processor::of_threads(agent, |_| true);
    let earlier = processor()?;
    let times = try_join_all(measuring).await?.concat();
    let now = processor()?;
    following.end().await;
    let pushes = u32::try_from(times.len())?.max(1);
    let each = |of: Duration| (of / pushes).as_secs_f64() * 1000.0;
    let (used, waited) = (each(now.since(&earlier)), each(now.waits_since(&earlier).0));
    let remark = format!(
        "since a stream beside our agent's heard it; a push takes {used:.2} ms of the agent's processor time and \
         {waited:.2} ms of waiting for a processor"
    );
    let mut rows = rows("a push of SPIRE's until the volume's files are swapped and read", times, &remark)?;
    if let Some(tail) = rows.pop() {
        rows.push(tail.target(Quantity::Time(TARGET)));
    }
    space.remove().await?;
    Ok(rows)
}
