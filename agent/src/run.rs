//! The agent put together: every part is built here, and every task ends here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use countersign_proto::agent::{AGENT_SOCKET, MAILBOX_SOCKET, STATUS_SOCKET};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::Error;
use crate::admin::Admin;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{ConfigFile, RunArgs};
use crate::identity::choice::choose;
use crate::identity::{self, Identity, JwtSvid, Push, Subscription, Token, Workload};
use crate::keeper::Keeper;
use crate::mailbox::Mailbox;
use crate::metrics::{Measured, Metrics};
use crate::request::Source;
use crate::service::Service;
use crate::sources::Sources;
use crate::store::{Fetched, Store};
use crate::turn::World;

/// The identity source and the stores of a configured agent.
#[derive(Debug)]
struct Configured {
    identity: Arc<identity::Source>,
    stores: HashMap<Arc<str>, Store>,
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

    fn subscribe(&self, workload: &Workload) -> Subscription {
        self.identity.subscribe(workload)
    }

    async fn changed(&self) -> Push {
        self.identity.changed().await
    }

    async fn fetch(&self, identity: &Identity, source: &Source) -> Result<Fetched, Error> {
        // A request names configured stores only: it was parsed against their names.
        let store = self.stores.get(&source.store).ok_or_else(|| Error::Unusable {
            store: source.store.to_string(),
            problem: "is not configured".to_owned(),
        })?;
        store.fetch(identity, source).await
    }
}

/// Runs the agent until `shutdown`. Files in volumes stay as they are.
pub async fn run(args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let clock = Clock::system();
    let RunArgs { link_dir, config, trust_domain, identity, driver_uid, http_listen, log: _ } = args;
    let stores = open_stores(&config, clock)?;
    let names = stores.keys().cloned().collect();
    let identity = Arc::new(choose(identity, trust_domain, clock)?);

    let metrics = Arc::<Metrics>::default();
    let sources =
        Measured::new(Configured { identity: Arc::clone(&identity), stores }, Arc::clone(&metrics), clock);
    let world = Arc::new(World { sources, cache: Cache::new(clock), clock });
    let (keeper, handle) = Keeper::new(Arc::clone(&world), Arc::clone(&metrics));

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
    let service =
        Service { keeper: handle, mailbox: mailbox.clone(), stores: Arc::new(names), metrics, clock };

    let (mailbox_socket, agent_socket) = (socket(MAILBOX_SOCKET), socket(AGENT_SOCKET));
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
    let (kept, (), letters, served, administered) = tokio::join!(
        ending(keeper.run(shutdown.clone()), ends("keeper")),
        ending(identity.run(shutdown.clone()), ends("identity")),
        ending(mailbox.serve(&mailbox_socket, driver_uid, shutdown.clone()), ends("mailbox")),
        ending(service.serve(&agent_socket, driver_uid, shutdown.clone()), ends("service")),
        ending(admin.serve(listener, shutdown.clone()), ends("http")),
    );
    let () = kept;
    letters.with_context(|| in_link(&mailbox_socket))?;
    served.with_context(|| in_link(&agent_socket))?;
    administered.context("http")
}

/// Awaits `part`, then says that it has ended.
async fn ending<T>(part: impl Future<Output = T>, ended: impl FnOnce()) -> T {
    let result = part.await;
    ended();
    result
}

fn open_stores(config: &Path, clock: Clock) -> anyhow::Result<HashMap<Arc<str>, Store>> {
    let file = ConfigFile::read(config).context("--config")?;
    let mut stores = HashMap::new();
    for (name, config) in file.stores {
        let store = Store::open(&name, config, clock)?;
        info!(store = name, "store opened");
        stores.insert(Arc::from(name), store);
    }
    Ok(stores)
}
