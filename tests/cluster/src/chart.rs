//! The release: the chart as helm installs, upgrades and removes it.

use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result, bail};
use countersign_tests::processes::workspace;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::secrets::{ALLOWED, STORE, SYSTEM};
use crate::tools::tool;
use crate::version::Version;

/// Name of the release.
pub const RELEASE: &str = "countersign";
/// Trust domain of the tests.
pub const TRUST_DOMAIN: &str = "e2e.test";

/// Where the images come from.
#[derive(Debug, Clone)]
pub struct Images {
    /// Repository of the driver's.
    pub driver: String,
    /// Repository of the agent's.
    pub agent: String,
    /// Tag of both; the chart's own version when empty.
    pub tag: String,
}

/// Helm for one cluster.
#[derive(Debug, Clone)]
pub struct Helm {
    program: PathBuf,
    kubeconfig: Option<PathBuf>,
    directory: PathBuf,
}

impl Helm {
    /// For the cluster of this kubeconfig, or of the environment's. Values are written into `directory`.
    pub fn new(kubeconfig: Option<&Path>, directory: &Path) -> Result<Self> {
        Ok(Self {
            program: tool("helm")?,
            kubeconfig: kubeconfig.map(Path::to_owned),
            directory: directory.to_owned(),
        })
    }

    /// Runs it.
    pub async fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        if let Some(path) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(path);
        }
        // It keeps caches and plugins in the home directory otherwise.
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, self.directory.join("helm"));
        }
        command.args(arguments).kill_on_drop(true).output().await.context("helm")
    }

    /// Runs it, and it has to succeed: what it printed.
    pub async fn must(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments).await?;
        if !output.status.success() {
            bail!("helm {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Installs the release, or upgrades it, and waits until all of it is ready.
    pub async fn install(&self, values: &Value) -> Result<String> {
        self.apply(&["upgrade", "--install", "--wait", "--timeout", "3m"], RELEASE, SYSTEM, values).await
    }

    /// Upgrades the release, and waits for nothing.
    pub async fn upgrade(&self, values: &Value) -> Result<String> {
        self.apply(&["upgrade"], RELEASE, SYSTEM, values).await
    }

    /// Installs a release of another name, in another namespace.
    pub async fn install_another(&self, release: &str, namespace: &str, values: &Value) -> Result<String> {
        self.apply(&["install"], release, namespace, values).await
    }

    /// What would be installed.
    pub async fn render(&self, values: &Value) -> Result<String> {
        // It asks no cluster what it can do.
        let version = Version::chosen()?;
        let kubernetes = format!("--kube-version={version}");
        let mut verb = vec!["template", &kubernetes];
        let policy = version
            .policy()
            .map(|api| format!("--api-versions=admissionregistration.k8s.io/{api}/MutatingAdmissionPolicy"));
        verb.extend(policy.as_deref());
        self.apply(&verb, RELEASE, SYSTEM, values).await
    }

    /// What these templates would install into another namespace.
    pub async fn render_part(&self, templates: &[&str], namespace: &str, values: &Value) -> Result<String> {
        let mut verb = vec!["template"];
        for template in templates {
            verb.extend(["--show-only", template]);
        }
        self.apply(&verb, RELEASE, namespace, values).await
    }

    async fn apply(&self, verb: &[&str], release: &str, namespace: &str, values: &Value) -> Result<String> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        std::io::Write::write_all(&mut file, values.to_string().as_bytes())?;
        let (path, chart) = (file.path().display().to_string(), workspace().join("charts/countersign"));
        let chart = chart.display().to_string();
        self.must(&[verb, &[release, &chart, "--namespace", namespace, "--values", &path]].concat()).await
    }
}

/// The values that all tests share.
pub fn values(images: &Images, level: &str) -> Value {
    let image =
        |repository: &str| json!({"repository": repository, "tag": images.tag, "pullPolicy": "IfNotPresent"});
    json!({
        "trustDomain": TRUST_DOMAIN,
        "logLevel": level,
        "image": {"driver": image(&images.driver), "agent": image(&images.agent)},
        "sops": {
            "existingConfigMap": STORE,
            "ageKey": {"secret": STORE},
            "allow": [{"id": format!("spiffe://{TRUST_DOMAIN}/ns/*/sa/*"), "paths": ALLOWED}],
        },
    })
}
