//! The driver from its start to its end.

use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use countersign_proto::agent::STATUS_SOCKET;
use countersign_proto::csi::identity_server::IdentityServer;
use countersign_proto::csi::node_server::NodeServer;
use http::Request;
use hyper::body::Incoming;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::Service;
use tonic::server::NamedService;

use crate::config::Config;
use crate::error::{Error, sentence};
use crate::identity::IdentityService;
use crate::inflight::Inflight;
use crate::link::{Dialer, Known, link};
use crate::log::Throttle;
use crate::mount::Kernel;
use crate::node::{self, NodeService};
use crate::registration::{self, Plugin, Standing};
use crate::request::Rules;
use crate::serving::{self, Answer, not_offered, service_of};
use crate::signals::Signals;
use crate::sockets::{self, Audience};
use crate::status::{self, Report};
use crate::target::KubeletRoot;
use crate::volumes::Volumes;
use crate::{recovery, sandbox, sole, whereabouts};

/// Time running calls get to end after the process was told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// A driver that has read the mount table and listens for kubelet's calls, but answers none yet.
#[derive(Debug)]
pub struct Driver {
    config: Config,
    listener: UnixListener,
    volumes: Arc<node::Volumes>,
    dialer: Dialer,
}

impl Driver {
    /// Opens the kubelet root, tries out the kernel, takes up what is mounted and makes the CSI socket.
    ///
    /// # Errors
    /// When any of these can't be done: a driver without it is of no use.
    pub fn prepare(config: Config) -> Result<Self, Error> {
        let root = KubeletRoot::open(&config.kubelet_root)?;
        let kernel = Kernel::probe(config.clone_attached)?;
        if !kernel.noswap {
            tracing::warn!(
                "tmpfs takes no `noswap` here: volumes can be swapped out, turn swap off on this node"
            );
        }
        tracing::info!(noswap = kernel.noswap, clone = %kernel.cloning, "tried out the kernel");
        let mounted = Arc::new(Volumes::default());
        recovery::recover(&root, &mounted)?;
        sockets::private_directory_of(&config.csi_socket)?;
        let listener = sockets::listen(&config.csi_socket, Audience::Owner)?;
        let inflight = Arc::new(Inflight::default());
        let signals = Arc::new(Signals::new(config.signals.clone()));
        let known = Known {
            volumes: Arc::clone(&mounted),
            inflight: Arc::clone(&inflight),
            signals: Arc::clone(&signals),
        };
        let (link, dialer) = link(config.link_dir.clone(), config.agent_uid, known);
        let volumes = Arc::new(node::Volumes {
            root,
            kernel,
            agent_uid: config.agent_uid,
            capacity: config.volume_capacity.get(),
            volumes: mounted,
            inflight,
            link,
            signals,
            hasher: RandomState::new(),
            complaints: Throttle::new(Duration::from_secs(30)),
        });
        Ok(Self { config, listener, volumes, dialer })
    }

    /// Serves until `stop`, then lets running calls end for up to ten seconds. Mounts stay.
    ///
    /// # Errors
    /// When a socket can't be made or served.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { config, listener, volumes, dialer } = self;
        let (standing, stands) = watch::channel(Standing::default());
        let running = TaskTracker::new();
        let rules = Rules { root: config.kubelet_root, tokens_from_context: config.tokens_from_context };
        let node = NodeService::new(config.node_id, rules, Arc::clone(&volumes), running.clone());
        let identity = IdentityService::new(config.driver_name.clone());
        let endpoint = config.csi_socket.display().to_string();
        let plugin = Plugin { name: config.driver_name, endpoint };
        let report = Report {
            standing: stands,
            volumes: Arc::clone(&volumes.volumes),
            link: Arc::clone(&volumes.link),
            kernel: volumes.kernel,
        };
        let status_socket = config.link_dir.join(STATUS_SOCKET);
        let status_listener = status::listen(&status_socket)?;

        let csi = serving::serve(listener, csi(identity, node), stop.clone());
        // A part that ends by itself ends the others.
        let ending = |outcome: Result<(), Error>| {
            stop.cancel();
            outcome
        };
        let registration = async {
            ending(registration::serve(config.registration_socket, plugin, standing, stop.clone()).await)
        };
        let serving = async { tokio::join!(csi, registration).1 };
        let status = status::serve(status_listener, || report.line(), stop.clone());
        // The link outlives the servers: calls that are still running need it.
        let unlinked = CancellationToken::new();
        let linked = dialer.run(unlinked.clone());
        let calls = async {
            let in_time = async {
                let served = Box::pin(serving).await;
                // Those whose caller has gone are still at it.
                running.close();
                running.wait().await;
                served
            };
            let served = tokio::select! {
                served = in_time => served,
                () = overtime(&stop) => {
                    tracing::warn!(calls = running.len(), "calls were still running: kubelet makes them again");
                    Ok(())
                }
            };
            unlinked.cancel();
            served
        };
        let (outcome, (), ()) = tokio::join!(calls, status, linked);
        for socket in [&status_socket, &config.csi_socket] {
            if let Err(source) = sockets::remove(socket) {
                let error = Error::Path { step: "remove", path: socket.clone(), source };
                tracing::warn!(error = sentence(&error), "a socket stays");
            }
        }
        outcome
    }
}

/// The two services of the CSI socket.
fn csi(identity: IdentityService, node: NodeService) -> impl Fn(Request<Incoming>) -> Answer + Clone + Send {
    let (identity, node) = (IdentityServer::new(identity), NodeServer::new(node));
    move |request| match service_of(&request) {
        IdentityServer::<IdentityService>::NAME => identity.clone().call(request),
        NodeServer::<NodeService>::NAME => node.clone().call(request),
        _ => not_offered(),
    }
}

/// Returns when everything should have ended after `stop`: neither a call nor a client that keeps its connection
/// busy can hold the process.
async fn overtime(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(GRACE).await;
}

/// Runs the driver until SIGTERM or SIGINT; a second one ends it at once.
///
/// # Errors
/// What kept it from starting or serving.
pub async fn run(config: Config) -> Result<(), Error> {
    let mut ending = Ending::new()?;
    if let Err(reason) = whereabouts::check(&config) {
        // Only another pod brings another root.
        return status::stand_by(&config.link_dir, &sentence(&reason), ending.asked()).await;
    }
    let sole = tokio::select! {
        sole = sole::wait(&config) => sole?,
        () = ending.asked() => return Ok(()),
    };
    let driver = Driver::prepare(config)?;
    // Before anybody is answered.
    sandbox::install()?;
    let stop = CancellationToken::new();
    let told = async {
        ending.asked().await;
        tracing::info!("stopping: running calls end first");
        stop.cancel();
        ending.asked().await;
        tracing::warn!("stopping at once");
    };
    let served = tokio::select! {
        served = driver.serve(stop.clone()) => served,
        () = told => Ok(()),
    };
    // Only now that no socket is left may another driver make its own.
    drop(sole);
    served
}

/// How a process is asked to end: SIGTERM or SIGINT.
#[derive(Debug)]
pub(crate) struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

impl Ending {
    /// Listens for both from now on.
    ///
    /// # Errors
    /// [`Error::Path`].
    pub(crate) fn new() -> Result<Self, Error> {
        let listen = |kind: SignalKind| {
            signal(kind).map_err(|source| Error::Path {
                step: "listen for signals at",
                path: "/".into(),
                source,
            })
        };
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Returns when it is asked to.
    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
