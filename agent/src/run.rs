//! The agent put together: every part is built here, and every task ends here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use countersign_proto::agent::{AGENT_SOCKET, MAILBOX_SOCKET, STATUS_SOCKET};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::Error;
use crate::admin::Admin;
use crate::answers;
use crate::audit::Audited;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{ConfigFile, RunArgs};
use crate::identity::choice::choose;
use crate::identity::{self, Identity, JwtSvid, Push, Roots, Standing, Subscription, Token, Workload};
use crate::keeper::Keeper;
use crate::kubernetes::duties::Duties;
use crate::mailbox::Mailbox;
use crate::metrics::{Measured, MeasuredMint, Metrics};
use crate::notify::Signals;
use crate::service::Service;
use crate::sources::{Ask, Sources, Stale};
use crate::store::{Answer, Held, Store};
use crate::turn::World;

/// The identity source and the stores of a configured agent.
#[derive(Debug)]
struct Configured {
    identity: identity::Source,
    stores: HashMap<Arc<str>, Store>,
    /// Which SVID of a pod a store is shown, by the store's name.
    hints: HashMap<Arc<str>, Arc<str>>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Sources for Configured {
    async fn x509(
        &self,
        workload: &Workload,
        tokens: &[Token],
        current: Option<&Identity>,
    ) -> Result<Identity, Error> {
        self.identity.x509(workload, tokens, current).await
    }

    async fn jwt(
        &self,
        workload: &Workload,
        tokens: &[Token],
        identity: &Identity,
        audience: &str,
    ) -> Result<JwtSvid, Error> {
        self.identity.jwt(workload, tokens, identity, audience).await
    }

    fn hint(&self, store: &str) -> Option<Arc<str>> {
        self.hints.get(store).cloned()
    }

    fn subscribe(&self, workload: &Workload) -> Subscription {
        self.identity.subscribe(workload)
    }

    async fn changed(&self) -> Push {
        self.identity.changed().await
    }

    async fn stale(&self) -> Stale {
        let mut stores: FuturesUnordered<_> = self.stores.values().map(Store::stale).collect();
        match stores.next().await {
            Some(stale) => stale,
            None => std::future::pending().await,
        }
    }

    async fn fetch(&self, ask: Ask<'_>, held: &mut Option<Held>) -> Result<Answer, Error> {
        let source = ask.source;
        // A request names configured stores only: it was parsed against their names.
        let store = self.stores.get(&source.store).ok_or_else(|| Error::Unusable {
            store: source.store.to_string(),
            problem: "is not configured".to_owned(),
        })?;
        store.fetch(&MeasuredMint::new(&self.identity, &self.metrics, self.clock), ask, held).await
    }

    async fn run(&self, shutdown: &CancellationToken) {
        let stores = join_all(self.stores.values().map(|store| store.run(shutdown.clone())));
        tokio::join!(self.identity.run(shutdown), stores);
    }

    fn reached(&self) -> Result<(), String> {
        self.identity.reached()
    }

    fn replicas(&self) -> Option<Standing> {
        self.identity.replicas()
    }

    fn roots(&self) -> Option<watch::Receiver<Roots>> {
        self.identity.roots()
    }
}

/// Runs the agent until `shutdown`. Files in volumes stay as they are.
pub async fn run(args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let clock = Clock::system();
    let RunArgs {
        link_dir,
        config,
        trust_domain,
        identity,
        api,
        cluster,
        driver_uid,
        http_listen,
        log: _,
        audit: _,
    } = args;
    let metrics = Arc::<Metrics>::default();
    let (stores, hints) = open_stores(&config, clock, &metrics)?;
    let names = stores.keys().cloned().collect();
    let identity = choose(identity, &api, &cluster.node_name, trust_domain, clock)?;
    if let (identity::Source::Embedded(_), Some(store)) = (&identity, hints.keys().min()) {
        bail!(
            "stores.{store}.hint: the embedded issuer gives each pod one SVID, without a hint; leave it out"
        );
    }

    let configured = Configured { identity, stores, hints, metrics: Arc::clone(&metrics), clock };
    let sources = Measured::new(Audited(configured), Arc::clone(&metrics), clock);
    let world = Arc::new(World { sources, cache: Cache::new(clock), clock });
    let signals = Signals::default();
    let duties = Duties::new(&cluster, &api, &metrics, clock, signals.clone())?;
    let (keeper, handle) = Keeper::new(Arc::clone(&world), Arc::clone(&metrics));
    let keeper = keeper.telling(duties.recorder.clone()).notifying(duties.notifier.clone());
    let calls = duties.calls;
    let reaching = Arc::clone(&world);

    let listener =
        TcpListener::bind(http_listen).await.with_context(|| format!("--http-listen {http_listen}"))?;
    info!(address = %listener.local_addr()?, "serving /healthz, /readyz and /metrics");
    let socket = |name: &str| -> PathBuf { link_dir.join(name) };
    let admin = Admin {
        keeper: handle.clone(),
        metrics: Arc::clone(&metrics),
        world,
        driver_status: socket(STATUS_SOCKET),
    };
    let mailbox = Mailbox::default();
    let service = Service {
        keeper: handle,
        mailbox: mailbox.clone(),
        stores: Arc::new(names),
        calls,
        signals,
        metrics,
        clock,
    };

    let (mailbox_socket, agent_socket) = (socket(MAILBOX_SOCKET), socket(AGENT_SOCKET));
    let answers_socket = socket(answers::SOCKET);
    let in_link = |path: &Path| format!("--link-dir: socket {}", path.display());
    // The first part to fail ends all others; an agent without one of its parts is none.
    let ends = |name: &'static str| {
        let shutdown = shutdown.clone();
        move || {
            if !shutdown.is_cancelled() {
                info!(part = name, "ended; the agent ends with it");
                shutdown.cancel();
            }
        }
    };
    let (kept, letters, served, told, administered, (), ()) = tokio::join!(
        ending(keeper.run(shutdown.clone()), ends("keeper")),
        ending(mailbox.serve(&mailbox_socket, driver_uid, shutdown.clone()), ends("mailbox")),
        ending(service.serve(&agent_socket, driver_uid, shutdown.clone()), ends("service")),
        ending(answers::serve(&reaching.cache, &answers_socket, shutdown.clone()), ends("answers")),
        ending(admin.serve(listener, shutdown.clone()), ends("http")),
        reaching.sources.run(&shutdown),
        duties.run(&shutdown),
    );
    let () = kept;
    letters.with_context(|| in_link(&mailbox_socket))?;
    served.with_context(|| in_link(&agent_socket))?;
    told.with_context(|| in_link(&answers_socket))?;
    administered.context("http")
}

/// Awaits `part`, then says that it has ended.
async fn ending<T>(part: impl Future<Output = T>, ended: impl FnOnce()) -> T {
    let result = part.await;
    ended();
    result
}

/// The stores by their names, and which SVID of a pod those are shown that want one.
type Opened = (HashMap<Arc<str>, Store>, HashMap<Arc<str>, Arc<str>>);

fn open_stores(config: &Path, clock: Clock, metrics: &Metrics) -> anyhow::Result<Opened> {
    let file = ConfigFile::read(config).context("--config")?;
    let (mut stores, mut hints) = (HashMap::new(), HashMap::new());
    for (name, config) in file.stores {
        hints.extend(config.hint().map(|hint| (Arc::from(name.as_str()), Arc::clone(hint))));
        let store = Store::open(&name, config, clock, metrics.vault())?;
        info!(store = name, "store opened");
        stores.insert(Arc::from(name), store);
    }
    Ok((stores, hints))
}
