//! What every case has: a node, SPIRE on it, and the chart installed as `docs/spire.md` has it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_cluster::cases::Planned;
pub use countersign_cluster::cases::{Kind, case};
use countersign_cluster::chart::{Helm, Images, values};
use countersign_cluster::cluster::{Cluster, Options};
use countersign_cluster::namespace::{Entered, enter};
use countersign_cluster::pods::{LIMIT, Space, is_ready, name, uid, until};
use countersign_cluster::secrets::{SYSTEM, Store};
use countersign_cluster::target::client;
use countersign_cluster::tools::tool;
use countersign_cluster::{cases, images, node};
use countersign_tests::http::Metrics;
use countersign_tests::processes::workspace;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::ListParams;
use libtest_mimic::Arguments;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::entry::Entry;
use crate::files::{Files, Follower};
use crate::page::{self, Broker};
use crate::spire::{BROKER_SOCKET, Spire, TRUST_DOMAIN, WORKLOAD_SOCKET};
use crate::vault::Vault;

/// What an operator has to give the SPIRE agent.
const AGENT_RIGHTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: spire}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: spire-agent, namespace: spire}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: spire-agent}
rules:
- {apiGroups: [""], resources: [nodes/pods], verbs: [get]}
- {apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: spire-agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: spire-agent}
subjects:
- {kind: ServiceAccount, name: spire-agent, namespace: spire}
"#;

/// One test case.
pub type Case = cases::Case<World>;

/// The node and all that runs on it.
pub struct World {
    /// Helm.
    pub helm: Helm,
    /// The values the release was installed with.
    pub values: Value,
    // Who asks ends before who is asked.
    /// Vault.
    pub vault: Vault,
    /// SPIRE.
    pub spire: Spire,
    /// Kubernetes.
    pub cluster: Cluster,
    /// The run's own directory.
    pub directory: PathBuf,
    /// Held by whoever applies a manifest.
    applying: Mutex<()>,
}

impl World {
    async fn new(cluster: Cluster, directory: &Path, secrets: &[(&str, Value)]) -> Result<Self> {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
        let built = target.join("images");
        let agent = built.join("context/countersign-agent");
        ensure!(agent.exists(), "{} is missing: `make image` makes it", agent.display());
        for name in ["driver", "agent"] {
            images::load(&built.join(format!("countersign-{name}.tar")))?;
        }
        let spire = Spire::start(directory, cluster.files()).await?;
        let image = |name: &str| format!("localhost/countersign-{name}");
        let images = Images { driver: image("driver"), agent: image("agent"), tag: String::new() };
        let helm = Helm::new(Some(&cluster.kubeconfig()), directory)?;
        let mut values = values(&images, "debug");
        set(&mut values, "trustDomain", json!(TRUST_DOMAIN));
        let own = [json!({"id": format!("spiffe://{TRUST_DOMAIN}/ns/*/sa/*"), "paths": ["{ns}.db"]})];
        set(values.get_mut("sops").context("sops")?, "allow", json!(own));
        set(&mut values, "identity", json!({"source": "spire"}));
        let sockets = json!({"workloadSocket": WORKLOAD_SOCKET, "brokerSocket": BROKER_SOCKET});
        set(&mut values, "spire", sockets);
        set(&mut values, "onChange", json!({"enabled": true}));
        set(&mut values, "signals", json!({"enabled": true}));
        let vault = Vault::start(&spire.web).await?;
        for (key, value) in vault.values()? {
            set(&mut values, key, value);
        }
        let world = Self {
            helm,
            values,
            vault,
            spire,
            cluster,
            directory: directory.to_owned(),
            applying: Mutex::default(),
        };
        world.prepare(&agent, secrets).await.map_err(|error| error.context(world.spire.said()))?;
        if let Err(error) = world.helm.install(&world.values).await {
            let report = world.report().await;
            return Err(error.context(report));
        }
        Ok(world)
    }

    /// What an operator does before the chart is installed: SPIRE's rights, its agent, our entry; the store's files.
    async fn prepare(&self, agent: &Path, secrets: &[(&str, Value)]) -> Result<()> {
        self.apply(AGENT_RIGHTS)?;
        let [kubeconfig, token] = self.spire.credentials();
        let issued = self.cluster.kubectl(&["create", "token", "spire-agent", "--namespace=spire"])?;
        std::fs::write(token, issued.trim())?;
        let admin = std::fs::read_to_string(self.cluster.kubeconfig())?;
        std::fs::write(kubeconfig, admin.replace("admin-token", issued.trim()))?;
        self.spire.attest(Broker::Ours).await?;
        self.spire.create(&Entry::ours().living(24 * 3600))?;
        self.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {SYSTEM}, labels: {{pod-security.kubernetes.io/enforce: privileged}}}}\n"
        ))?;
        let ca = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "vault-ca", "namespace": SYSTEM},
            "data": {"ca.pem": self.vault.authority().pem()},
        });
        self.apply(&ca.to_string())?;
        let store = Store::new(agent, &self.directory.join("store"), self.client().await?).await?;
        store.write_all(secrets).await
    }

    /// `kubectl apply` with a manifest. One at a time: two that make the same role would be in each other's way.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let _turn = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.directory.join(format!("{:?}.yaml", std::thread::current().id()));
        std::fs::write(&file, manifest)?;
        self.cluster.kubectl(&["apply", "-f", &file.display().to_string()]).map(drop)
    }

    /// A client. Each case has a runtime of its own, and connections belong to one.
    pub async fn client(&self) -> Result<Client> {
        client(Some(&self.cluster.kubeconfig())).await
    }

    /// A namespace for one case, in which we have the page's rights.
    pub async fn space(&self, name: &str) -> Result<Space> {
        let space = self.bare_space(name).await?;
        self.apply(&page::rights(name)?)?;
        Ok(space)
    }

    /// A namespace in which we have no rights.
    pub async fn bare_space(&self, name: &str) -> Result<Space> {
        Space::new(&self.client().await?, name, images::BUSYBOX).await
    }

    /// The namespace of the release.
    pub async fn system(&self) -> Result<Space> {
        Ok(Space::system(&self.client().await?))
    }

    /// What our agent counts.
    pub async fn metrics(&self) -> Result<Metrics> {
        let nodes = self.system().await?.ready("app.kubernetes.io/component=node").await?;
        let pod = nodes.first().context("a ready pod of driver and agent")?;
        let address =
            pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).context("its address")?;
        Metrics::scrape(SocketAddr::new(address.parse()?, 9410)).await
    }

    /// What our agent has counted under a name, all series that have these labels.
    pub async fn counted(&self, metric: &str, labels: &[&str]) -> Result<f64> {
        Ok(self.metrics().await?.sum(metric, labels).unwrap_or_default())
    }

    /// What may tell why something failed.
    pub async fn report(&self) -> String {
        let ours = match self.system().await {
            Ok(system) => system.tails(40).await,
            Err(error) => format!("{error:#}\n"),
        };
        self.spire.said() + &ours + &self.cluster.tails(10)
    }

    /// Waits until the release is ready.
    pub async fn settled(&self) -> Result<()> {
        let system = self.system().await?;
        until(LIMIT, "a release that is ready", async || {
            let all = system.api::<Pod>().list(&ListParams::default()).await?;
            Ok(all.iter().all(is_ready).then_some(()))
        })
        .await
    }
}

fn set(values: &mut Value, key: &str, value: Value) {
    if let Some(map) = values.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}

/// Where a pod's one volume of ours is mounted on the node.
pub fn volume(pod: &Pod) -> Result<PathBuf> {
    let mut mounts = node::volumes(uid(pod)?)?;
    // Each container has it too; kubelet's own is what they are made from.
    mounts.retain(|mount| mount.point.ends_with("mount"));
    let mount = mounts.pop().with_context(|| format!("no volume of {:?} is mounted", name(pod)))?;
    ensure!(mounts.is_empty(), "{} more volumes", mounts.len());
    Ok(mount.point)
}

/// The files of a pod.
pub fn files(pod: &Pod) -> Result<Files> {
    Files::read(&volume(pod)?)
}

/// Follows the files of a pod.
pub fn follow(pod: &Pod) -> Result<Follower> {
    Follower::new(&volume(pod)?)
}

/// Runs the cases as the standard harness would, its arguments included, on one node. To be called first in `main`.
pub fn main(cases: Vec<Case>, secrets: &[(&str, Value)]) -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    let cases = match cases::planned(&arguments, cases)? {
        Planned::Cases(cases) => cases,
        Planned::Ended(code) => return Ok(code),
    };
    let (runtime, world) = match begin(secrets)? {
        Ok(begun) => begun,
        Err(code) => return Ok(code),
    };
    let conclusion = cases::run(arguments, cases, &world, true);
    if conclusion.has_failed() {
        cases::tell(&runtime.block_on(world.report()));
    }
    Ok(conclusion.exit_code())
}

/// Runs something on such a node. To be called first in `main`.
pub fn run(secrets: &[(&str, Value)], body: impl AsyncFnOnce(Arc<World>) -> Result<()>) -> Result<ExitCode> {
    let (runtime, world) = match begin(secrets)? {
        Ok(begun) => begun,
        Err(code) => return Ok(code),
    };
    if let Err(error) = runtime.block_on(body(Arc::clone(&world))) {
        cases::tell(&runtime.block_on(world.report()));
        return Err(error);
    }
    Ok(ExitCode::SUCCESS)
}

/// A node; or, outside of its namespaces, what became of the run inside them.
fn begin(secrets: &[(&str, Value)]) -> Result<Result<(Runtime, Arc<World>), ExitCode>> {
    crate::spire::build()?;
    for name in ["vault", "reader", "spire-controller-manager"] {
        tool(name)?;
    }
    let place = match enter()? {
        Entered::Ended(code) => return Ok(Err(code)),
        Entered::Inside(place) => place,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let options = Options::usual(Duration::from_secs(10))?;
    let world = runtime.block_on(async {
        let cluster = Cluster::start(&place, options).await?;
        World::new(cluster, &place.directory, secrets).await
    })?;
    Ok(Ok((runtime, Arc::new(world))))
}
