//! What every case has: a cluster with the chart installed, ours or one that runs already.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use countersign_tests::processes::workspace;
use countersign_tests::scratch::Scratch;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use libtest_mimic::Arguments;
use serde_json::{Value, json};

use crate::cases::Planned;
pub use crate::cases::{Kind, case};
use crate::chart::{Helm, Images, values};
use crate::cluster::{Cluster, Options};
use crate::layout::KUBELET;
use crate::namespace::{Entered, enter};
use crate::pods::Space;
use crate::secrets::{SYSTEM, Store};
use crate::target::client;
use crate::version::Version;
use crate::{canary, cases, images, tools};

/// How often kubelet looks at each pod in the tests: what waits for a ConfigMap or a republish waits for this.
const SYNC: Duration = Duration::from_secs(10);
/// The most that the parts of Kubernetes say without the bodies of answers.
const VERBOSITY: u8 = 7;

/// One test case.
pub type Case = crate::cases::Case<World>;

/// The cluster and what is needed to use it.
pub struct World {
    cluster: Option<Cluster>,
    kubeconfig: Option<PathBuf>,
    helm: Helm,
    values: Value,
    agent: PathBuf,
    directory: PathBuf,
    image: String,
}

impl World {
    /// A client. Each case has a runtime of its own, and connections belong to one.
    pub async fn client(&self) -> Result<Client> {
        client(self.kubeconfig.as_deref()).await
    }

    /// A namespace for one case.
    pub async fn space(&self, name: &str) -> Result<Space> {
        Space::new(&self.client().await?, &format!("e2e-{name}"), &self.image).await
    }

    /// The namespace of the release.
    pub async fn system(&self) -> Result<Space> {
        Ok(Space::system(&self.client().await?))
    }

    /// The store's files.
    pub async fn store(&self) -> Result<Store> {
        Store::open(&self.agent, &self.directory.join("store"), self.client().await?)
    }

    /// Helm.
    pub fn helm(&self) -> &Helm {
        &self.helm
    }

    /// The values the release was installed with.
    pub fn values(&self) -> &Value {
        &self.values
    }

    /// The image of the tests' pods.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Our own cluster, which [`Kind::Node`] promises.
    pub fn node(&self) -> Result<&Cluster> {
        self.cluster.as_ref().context("a cluster of our own")
    }

    /// Installs the chart on a cluster, ours or that of the environment, with these values besides; our parts log from
    /// `level` on.
    pub async fn new(cluster: Option<Cluster>, directory: &Path, level: &str, more: &Value) -> Result<Self> {
        let kubeconfig = cluster.as_ref().map(Cluster::kubeconfig);
        let client = client(kubeconfig.as_deref()).await?;
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
        let built = target.join("images");
        let agent = built.join("context/countersign-agent");
        if !agent.exists() {
            bail!("{} is missing: `make image` makes it", agent.display());
        }
        let from =
            |variable: &str, default: &str| std::env::var(variable).unwrap_or_else(|_| default.to_owned());
        let tag = from("COUNTERSIGN_TAG", "");
        let (release, image) = if cluster.is_some() {
            for name in ["driver", "agent"] {
                images::load(&built.join(format!("countersign-{name}.tar")))?;
            }
            let image = |name: &str| format!("localhost/countersign-{name}");
            (Images { driver: image("driver"), agent: image("agent"), tag }, images::BUSYBOX.to_owned())
        } else {
            let registry = from("COUNTERSIGN_REGISTRY", "localhost");
            let image = |name: &str| format!("{registry}/countersign-{name}");
            (
                Images { driver: image("driver"), agent: image("agent"), tag },
                from("COUNTERSIGN_TEST_IMAGE", "busybox:1"),
            )
        };
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": SYSTEM, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
        });
        let namespaces = Api::<Namespace>::all(client.clone());
        namespaces.patch(SYSTEM, &PatchParams::apply("e2e").force(), &Patch::Apply(namespace)).await?;
        let store = Store::new(&agent, &directory.join("store"), client).await?;
        store.write_all(&canary::documents()).await?;
        let helm = Helm::new(kubeconfig.as_deref(), directory)?;
        let mut values = values(&release, level);
        if let (Some(values), Some(more)) = (values.as_object_mut(), more.as_object()) {
            values.extend(more.clone());
        }
        let world = Self { cluster, kubeconfig, helm, values, agent, directory: directory.to_owned(), image };
        if let Err(error) = world.helm.install(&world.values).await {
            let report = world.report().await;
            return Err(error.context(report));
        }
        Ok(world)
    }

    /// What may tell why something failed.
    async fn report(&self) -> String {
        let mut text = match self.system().await {
            Ok(system) => system.tails(25).await,
            Err(error) => format!("{error:#}\n"),
        };
        if let Some(cluster) = &self.cluster {
            text += &cluster.tails(15);
        }
        text
    }
}

/// Runs the cases as the standard harness would, its arguments included, on one cluster. To be called first in `main`.
pub fn main(cases: Vec<Case>) -> Result<ExitCode> {
    start(cases, KUBELET, &json!({}))
}

/// The same with kubelet's root directory at another place; the release is installed for that.
pub fn main_where(cases: Vec<Case>, kubelet: &'static str) -> Result<ExitCode> {
    start(cases, kubelet, &json!({"kubeletDir": kubelet}))
}

/// The same with a release that has some values besides.
pub fn main_with(cases: Vec<Case>, values: &Value) -> Result<ExitCode> {
    start(cases, KUBELET, values)
}

fn start(cases: Vec<Case>, kubelet: &'static str, more: &Value) -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    let cases = match cases::planned(&arguments, cases)? {
        Planned::Cases(cases) => cases,
        Planned::Ended(code) => return Ok(code),
    };
    let foreign = std::env::var_os("KUBECONFIG").is_some();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if foreign {
        tools::tool("helm")?;
        let scratch = Scratch::new()?;
        return run(&runtime, arguments, cases, None, scratch.path(), more);
    }
    match enter()? {
        Entered::Ended(code) => Ok(code),
        Entered::Inside(place) => {
            let version = Version::chosen()?;
            let options = Options { sync: SYNC, verbosity: VERBOSITY, kubelet, version, beta: false };
            let cluster = runtime.block_on(Cluster::start(&place, options))?;
            run(&runtime, arguments, cases, Some(cluster), &place.directory, more)
        }
    }
}

fn run(
    runtime: &tokio::runtime::Runtime,
    arguments: Arguments,
    cases: Vec<Case>,
    cluster: Option<Cluster>,
    directory: &Path,
    more: &Value,
) -> Result<ExitCode> {
    let node = cluster.is_some();
    if let Some(cluster) = &cluster {
        cases::tell(&format!("on Kubernetes {}", cluster.version()));
    }
    let world = Arc::new(runtime.block_on(World::new(cluster, directory, "trace", more))?);
    let conclusion = cases::run(arguments, cases, &world, node);
    if conclusion.has_failed() {
        cases::tell(&runtime.block_on(world.report()));
    }
    Ok(conclusion.exit_code())
}
