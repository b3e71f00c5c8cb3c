//! The hardened SPIRE charts on a node, and Countersign beside them, step by step as `docs/spire.md` has it.

mod layout;
mod rig;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_cluster::cases::Planned;
use countersign_cluster::chart::Helm;
use countersign_cluster::cluster::{Cluster, Options};
use countersign_cluster::images;
use countersign_cluster::namespace::{Entered, enter};
use countersign_cluster::pods::{LIMIT, Space, until};
use countersign_cluster::secrets::{SYSTEM, Store};
use countersign_cluster::target::client;
use countersign_cluster::tools::tool;
use countersign_cluster::{cases, chart};
use countersign_tests::processes::workspace;
use countersign_vault_tests::page::Page;
use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use libtest_mimic::Arguments;
use serde_json::Value;

pub use self::layout::{Layout, PRODUCTION, QUICK};
use crate::page;

/// Not the page's: the charts refuse it where they are told to be strict.
pub const TRUST_DOMAIN: &str = "bank.example";
/// The heading of the page.
const HEADING: &str = "Beside the hardened SPIRE charts";
/// The directory `charts` of a clone of spiffe/helm-charts-hardened.
const CHARTS: &str = "SPIRE_CHARTS";
/// A chart that pulls no image and waits for SPIRE's agents, on a busy machine.
const LONG: &str = "4m";

/// One test case.
pub type Case = cases::Case<Charted>;

/// The node and what is installed on it.
pub struct Charted {
    helm: Helm,
    cluster: Cluster,
    directory: PathBuf,
    charts: PathBuf,
}

/// Which of the page's two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the Broker API.
    Broker,
    /// By the Delegated Identity API.
    Delegated,
}

impl Charted {
    async fn new(
        cluster: Cluster,
        directory: &Path,
        charts: &Path,
        secrets: &[(&str, Value)],
    ) -> Result<Self> {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
        let built = target.join("images");
        for name in ["driver", "agent"] {
            images::load(&built.join(format!("countersign-{name}.tar")))?;
        }
        rig::images(directory)?;
        let helm = Helm::new(Some(&cluster.kubeconfig()), directory)?;
        let charts = rig::copied(charts, directory)?;
        let charted = Self { helm, cluster, directory: directory.to_owned(), charts };
        // The charts beside it that it needs.
        let spire = charted.charts.join("spire").display().to_string();
        charted.helm.must(&["dependency", "build", &spire]).await?;
        let crds = charted.charts.join("spire-crds").display().to_string();
        let arguments = [
            "upgrade",
            "--install",
            "--create-namespace",
            "-n",
            PRODUCTION.management,
            "spire-crds",
            crds.as_str(),
        ];
        charted.helm.must(&arguments).await?;
        charted.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {SYSTEM}, labels: {{pod-security.kubernetes.io/enforce: privileged}}}}\n"
        ))?;
        let agent = built.join("context/countersign-agent");
        let store = Store::new(&agent, &directory.join("store"), charted.client().await?).await?;
        store.write_all(secrets).await?;
        Ok(charted)
    }

    /// Installs both releases by the page but for its second step, and waits until all of both is ready.
    pub async fn install(&self, layout: &Layout, way: Way) -> Result<()> {
        self.install_spire(layout, way).await?;
        self.apply(&layout.own(&one("ClusterSPIFFEID")?))?;
        let ours = our_values(way)?;
        let rig = self.write("ours.json", &rig::ours().to_string())?;
        let page = self.write("ours.yaml", &layout.own(&ours))?;
        let chart = workspace().join("charts/countersign").display().to_string();
        let mut arguments = vec!["upgrade", "--install", "--wait", "--timeout", LONG, "-n", SYSTEM];
        arguments.extend([chart::RELEASE, &chart, "--values", &rig, "--values", &page]);
        self.helm.must(&arguments).await.map(drop)
    }

    /// The page's second step: SPIRE's agent may ask whether we may have a pod.
    pub fn let_spire_ask(&self, layout: &Layout) -> Result<()> {
        self.apply(&layout.own(&one("ClusterRoleBinding")?))
    }

    async fn install_spire(&self, layout: &Layout, way: Way) -> Result<()> {
        let Layout { management, servers, .. } = layout;
        let other = layout.other().management;
        self.helm.must(&["uninstall", "--ignore-not-found", "--wait", "-n", other, "spire"]).await?;
        let page = spire_values(way)?;
        let (usual, page) =
            (self.write("usual.yaml", layout.values)?, self.write("page.yaml", &layout.own(&page))?);
        let rig = self.write("rig.json", &rig::spire(servers).to_string())?;
        let chart = self.charts.join("spire").display().to_string();
        let mut arguments = vec!["upgrade", "--install", "--create-namespace", "--timeout", LONG];
        arguments.extend(["-n", management, "spire", &chart]);
        for values in [&usual, &page, &rig] {
            arguments.extend(["--values", values]);
        }
        let group = self.write("group.yaml", &group()?)?;
        if layout.roots {
            arguments.extend(["--values", &group]);
        }
        self.helm.must(&arguments).await?;
        // Here, cluster addresses lead nowhere.
        self.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: pods, namespace: {servers}}}\nspec:\n  clusterIP: None\n  \
             selector: {{app.kubernetes.io/name: server, app.kubernetes.io/instance: spire}}\n  ports: [{{port: 8081}}]\n"
        ))?;
        let (servers, agents) = (self.space(servers).await?, self.space(layout.agents).await?);
        until(LIMIT, "a SPIRE server", async || {
            let set = servers.api::<StatefulSet>().get_opt("spire-server").await?;
            Ok(set.and_then(|set| set.status?.ready_replicas).filter(|ready| *ready == 1))
        })
        .await?;
        until(LIMIT, "the SPIRE agents of this release", async || {
            let Some(set) = agents.api::<DaemonSet>().get_opt("spire-agent").await? else { return Ok(None) };
            let generation = set.metadata.generation;
            let is = |status: k8s_openapi::api::apps::v1::DaemonSetStatus| {
                status.observed_generation == generation
                    && status.updated_number_scheduled == Some(1)
                    && status.number_available == Some(1)
            };
            Ok(set.status.is_some_and(is).then_some(()))
        })
        .await
    }

    /// `kubectl apply` with a manifest.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let file = self.write("manifest.yaml", manifest)?;
        self.cluster.kubectl(&["apply", "-f", &file]).map(drop)
    }

    /// The page's rights in a namespace.
    pub fn allow(&self, namespace: &str) -> Result<()> {
        self.apply(&named(&page::rights(namespace)?))
    }

    /// The configuration of SPIRE's agent, as the charts have made it.
    pub fn agent_conf(&self, layout: &Layout) -> Result<Value> {
        let path = r"jsonpath={.data.agent\.conf}";
        let text =
            self.cluster.kubectl(&["get", "configmap", "spire-agent", "-n", layout.agents, "-o", path])?;
        Ok(serde_json::from_str(&text)?)
    }

    async fn client(&self) -> Result<kube::Client> {
        client(Some(&self.cluster.kubeconfig())).await
    }

    async fn space(&self, name: &str) -> Result<Space> {
        Ok(Space::there(&self.client().await?, name, images::BUSYBOX))
    }

    /// A new namespace.
    pub async fn new_space(&self, name: &str) -> Result<Space> {
        Space::new(&self.client().await?, name, images::BUSYBOX).await
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.directory.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    async fn report(&self) -> String {
        let mut text = self.cluster.tails(10);
        for name in [PRODUCTION.servers, PRODUCTION.agents, QUICK.agents, SYSTEM] {
            if let Ok(space) = self.space(name).await {
                text.push_str(&space.tails(25).await);
            }
        }
        text
    }
}

/// The page's values for the charts.
fn spire_values(way: Way) -> Result<String> {
    block(|text| text.contains("  sockets:\n") && delegated(text) == (way == Way::Delegated))
}

/// Those besides for charts whose SPIRE agent would run in the group of root.
fn group() -> Result<String> {
    block(|text| text.contains("podSecurityContext"))
}

/// The page's values for our chart.
fn our_values(way: Way) -> Result<String> {
    block(|text| text.contains("identity:") && delegated(text) == (way == Way::Delegated))
}

/// Whether a block is of the older way.
fn delegated(text: &str) -> bool {
    text.contains("authorizedDelegates") || text.contains("api: delegated")
}

/// The page's one block of YAML that is this one.
fn block(wanted: impl Fn(&str) -> bool) -> Result<String> {
    let page = Page::read("spire.md")?;
    let mut blocks = page.under(HEADING, "yaml")?;
    blocks.retain(|block| wanted(&block.text));
    let [block] = blocks.try_into().ok().context("docs/spire.md: one such block of YAML")?;
    Ok(block.text.clone())
}

fn one(kind: &str) -> Result<String> {
    let line = format!("kind: {kind}\n");
    block(|text| text.contains(&line))
}

fn named(text: &str) -> String {
    text.replace(crate::spire::TRUST_DOMAIN, TRUST_DOMAIN)
}

/// Runs the cases on one node. To be called first in `main`.
pub fn main(cases: Vec<Case>, secrets: &[(&str, Value)]) -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    let cases = match cases::planned(&arguments, cases)? {
        Planned::Cases(cases) => cases,
        Planned::Ended(code) => return Ok(code),
    };
    let charts = std::env::var_os(CHARTS).map(PathBuf::from);
    let charts = charts.with_context(|| {
        format!(
            "{CHARTS}: the directory `charts` of a clone of github.com/spiffe/helm-charts-hardened is wanted"
        )
    })?;
    let charts = charts.canonicalize().with_context(|| charts.display().to_string())?;
    for name in rig::TOOLS {
        tool(name)?;
    }
    let place = match enter()? {
        Entered::Ended(code) => return Ok(code),
        Entered::Inside(place) => place,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let options = Options::usual(Duration::from_secs(10))?;
    let world = runtime.block_on(async {
        let cluster = Cluster::start(&place, options).await?;
        Charted::new(cluster, &place.directory, &charts, secrets).await.map(Arc::new)
    })?;
    let conclusion = cases::run(arguments, cases, &world, true);
    if conclusion.has_failed() {
        cases::tell(&runtime.block_on(world.report()));
    }
    Ok(conclusion.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_each_step_once() {
        for way in [Way::Broker, Way::Delegated] {
            spire_values(way).unwrap();
            assert!(our_values(way).unwrap().contains("socketGroups: [1000]"));
        }
        assert!(group().unwrap().contains("runAsGroup: 1000"));
        let binding = QUICK.own(&one("ClusterRoleBinding").unwrap());
        assert!(binding.contains("namespace: spire}"), "{binding}");
        let entry = QUICK.own(&one("ClusterSPIFFEID").unwrap());
        assert!(entry.contains("className: spire-spire "), "{entry}");
    }
}
