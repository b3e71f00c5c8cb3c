//! How long a new pod's first SVID takes, and what many streams cost.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_agent::clock::Clock;
use countersign_agent::identity::spire::{BrokerConfig, Config, DelegatedConfig, Socket, WayConfig};
use countersign_agent::identity::{Source, Spire, Subscription, Token, Workload};
use countersign_agent::kubernetes::Server;
use countersign_cluster::layout::API_ADDRESS;
use countersign_cluster::node;
use countersign_cluster::pods::{LIMIT, uid, until};
use countersign_tests::bench::report::{Quantity, Row};
use countersign_tests::bench::times::Times;
use countersign_tests::bench::usage::{Processor, millicores};
use countersign_tests::processes::Status;
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Effort;
use crate::entry::Entry;
use crate::spire::{ADMIN_SOCKET, BROKER_SOCKET, TRUST_DOMAIN, US, WORKLOAD_SOCKET};
use crate::world::World;

/// Service accounts that the pods share.
const ACCOUNTS: usize = 25;
/// A driver that nobody has: kubelet knows the pod, and never gets to its sandbox.
const NOBODY: &str = "none.example.org";

/// When what a pod is was pushed last, by its uid.
pub(super) type Heard = Arc<Mutex<HashMap<String, Instant>>>;

/// Threads that do nothing but follow a source.
const THREADS: &str = "following";

/// A source of identities that is followed in this process, on threads of its own: what else the process does for its
/// cluster is not counted as ours.
pub(super) struct Following {
    pub(super) source: Arc<Source>,
    pub(super) heard: Heard,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
    runtime: Runtime,
}

impl Following {
    pub(super) fn new(way: WayConfig) -> Result<Self> {
        let config = Config { way, trust_domain: TRUST_DOMAIN.parse()?, hint: None, clock: Clock::system() };
        Self::of(Source::Spire(Spire::open(config)))
    }

    pub(super) fn of(source: Source) -> Result<Self> {
        let runtime = runtime::Builder::new_multi_thread().thread_name(THREADS).enable_all().build()?;
        let source = Arc::new(source);
        let (heard, shutdown, mut tasks) = (Heard::default(), CancellationToken::new(), JoinSet::new());
        let (running, end) = (Arc::clone(&source), shutdown.clone());
        tasks.spawn_on(async move { running.run(&end).await }, runtime.handle());
        let (told, by) = (Arc::clone(&heard), Arc::clone(&source));
        let listening = async move {
            loop {
                let push = by.changed().await;
                let mut heard = told.lock().unwrap_or_else(PoisonError::into_inner);
                heard.insert(push.workload.pod_uid, Instant::now());
            }
        };
        tasks.spawn_on(listening, runtime.handle());
        Ok(Self { source, heard, shutdown, tasks, runtime })
    }

    /// The time from a pod's first question to its answer.
    async fn first(&self, pod: &Workload) -> Result<(Duration, Subscription)> {
        self.first_by(pod, &[]).await
    }

    /// The same, with kubelet's tokens at hand.
    pub(super) async fn first_by(
        &self,
        pod: &Workload,
        tokens: &[Token],
    ) -> Result<(Duration, Subscription)> {
        let began = Instant::now();
        let subscription = self.source.subscribe(pod);
        self.source.x509(pod, tokens, None).await?;
        Ok((began.elapsed(), subscription))
    }

    pub(super) async fn end(mut self) {
        self.shutdown.cancel();
        self.tasks.shutdown().await;
        // Waiting for its threads here would be waiting on a thread that others need.
        self.runtime.shutdown_background();
    }
}

pub(super) fn by_broker() -> Result<WayConfig> {
    let socket = |path: &str| path.parse::<Socket>().context("a socket");
    Ok(WayConfig::Broker(BrokerConfig {
        workload_socket: socket(WORKLOAD_SOCKET)?,
        broker_socket: socket(BROKER_SOCKET)?,
    }))
}

/// Pods that kubelet knows and that have entries; and an entry for this process, which is then who our agent is.
pub(super) async fn pods(world: &World, effort: Effort) -> Result<Vec<Workload>> {
    let (_, id) = US.split_once("example.org/").context("our own path")?;
    world.spire.create(&Entry::new(id, &["unix:uid:0"]).living(24 * 3600))?;
    let space = world.space("bench").await?;
    for account in 0..ACCOUNTS {
        let account = format!("app-{account}");
        space.account(&account).await?;
        world.spire.create(&Entry::account("bench", &account))?;
    }
    let making = (0..effort.streams).map(async |n| {
        let (name, account) = (format!("pod-{n}"), format!("app-{}", n % ACCOUNTS));
        let mut manifest = space.manifest(&name, &[]);
        manifest["spec"]["serviceAccountName"] = json!(account);
        manifest["spec"]["volumes"] = json!([{"name": "v", "csi": {"driver": NOBODY}}]);
        manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        let pod_uid = uid(&space.create(&manifest).await?)?.to_owned();
        let known = async || Ok(node::directory(&pod_uid).exists().then_some(()));
        until(LIMIT, "known to kubelet", known).await?;
        Ok::<_, anyhow::Error>(Workload {
            namespace: "bench".to_owned(),
            pod_name: name,
            pod_uid,
            service_account: account,
            hint: None,
        })
    });
    try_join_all(making).await
}

/// What `spire-agent api fetch` takes for a process that runs already, its own start included.
pub(super) fn own_client(world: &World, effort: Effort) -> Result<Vec<Row>> {
    let mut times = Vec::new();
    for _ in 0..effort.calls {
        let began = Instant::now();
        let fetch = ["api", "fetch", "x509", "-silent", "-socketPath", WORKLOAD_SOCKET];
        let output = Command::new(world.spire.client()).args(fetch).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        times.push(began.elapsed());
    }
    rows("`spire-agent api fetch x509` of a running process", times, "its own start included")
}

/// The first SVID by the Broker API, and what it costs to keep the streams.
pub(super) async fn broker(world: &World, pods: &[Workload], effort: Effort) -> Result<Vec<Row>> {
    let theirs = world.spire.agent_pid().await?;
    let ours = std::process::id();
    let resident = |pid| Ok::<_, anyhow::Error>(Status::of(pid)?.resident_kib * 1024);
    let before = (resident(ours)?, resident(theirs)?);
    let following = Following::new(by_broker()?)?;
    // The connection is made by whoever comes first.
    let (first, others) = pods.split_first().context("a pod")?;
    let mut streams = vec![following.first(first).await?.1];
    let (alone, storm) = others.split_at(effort.alone.min(others.len()));
    let mut times = Vec::new();
    for pod in alone {
        let (time, stream) = following.first(pod).await?;
        times.push(time);
        streams.push(stream);
    }
    let mut rows = rows("first SVID of a new pod, by the broker", times, "")?;
    let began = Instant::now();
    let asking = try_join_all(storm.iter().map(|pod| following.first(pod))).await?;
    let took = began.elapsed();
    streams.extend(asking.into_iter().map(|(_, stream)| stream));
    rows.push(Row::new(
        format!("{} more pods at once, until the last has its SVID", storm.len()),
        Quantity::Time(took),
    ));
    let after = (resident(ours)?, resident(theirs)?);
    let grown = |before: u64, after: u64| Quantity::Bytes(after.saturating_sub(before));
    let name = |whose: &str| format!("{whose} RSS with {} streams, beyond none", pods.len());
    rows.push(Row::new(name("our"), grown(before.0, after.0)));
    rows.push(Row::new(name("SPIRE agent's"), grown(before.1, after.1)));
    let processors = || {
        let ours = Processor::of_threads(ours, |name| name == THREADS)?;
        Ok::<_, anyhow::Error>([ours, Processor::of_threads(theirs, |_| true)?])
    };
    let earlier = processors()?;
    sleep(effort.rest).await;
    for ((whose, now), earlier) in ["ours", "SPIRE agent's"].iter().zip(processors()?).zip(&earlier) {
        let share = Quantity::Millicores(millicores(now.since(earlier), effort.rest));
        rows.push(Row::new(format!("CPU at rest with {} streams, {whose}", pods.len()), share));
    }
    drop(streams);
    following.end().await;
    Ok(rows)
}

/// The first SVID by the Delegated Identity API: a look at the API server is part of it.
pub(super) async fn delegated(world: &World, pods: &[Workload], effort: Effort) -> Result<Vec<Row>> {
    let token = world.directory.join("bench-token");
    std::fs::write(&token, "admin-token")?;
    let server = Server {
        url: format!("https://{API_ADDRESS}").parse()?,
        ca: world.cluster.files().pki("ca.crt"),
        token,
    };
    let way = DelegatedConfig {
        admin_socket: Path::new(ADMIN_SOCKET).display().to_string().parse()?,
        server,
        node: "node-1".to_owned(),
    };
    let following = Following::new(WayConfig::Delegated(way))?;
    let mut times = Vec::new();
    let (first, others) = pods.split_first().context("a pod")?;
    drop(following.first(first).await?);
    for pod in others.iter().take(effort.alone) {
        times.push(following.first(pod).await?.0);
    }
    following.end().await;
    rows("first SVID of a new pod, by the delegated API", times, "a read of the pod included")
}

/// The middle and the tail of some times.
pub(super) fn rows(what: &str, times: Vec<Duration>, remark: &str) -> Result<Vec<Row>> {
    let times = Times::of(times)?;
    let row =
        |percent: usize| {
            Row::new(format!("{what}, p{percent}"), Quantity::Time(times.percentile(percent))).remark(
                format!("{} samples{}{remark}", times.count(), if remark.is_empty() { "" } else { "; " }),
            )
        };
    Ok(vec![row(50), row(99)])
}
