//! What is this machine's and not the page's: images made of what was built here, values that name them, and a copy of the
//! charts.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use countersign_cluster::chart::{Images, values};
use countersign_cluster::images::{Image, load, make};
use countersign_cluster::tools::{installed, tool};
use serde_json::{Value, json};

use super::TRUST_DOMAIN;

/// What is built for it.
pub(super) const TOOLS: [&str; 4] = ["spire-server", "spire-agent", "spire-controller-manager", "kubectl"];

/// The values that the charts' README has for production, with what it says to change.
pub(super) const PRODUCTION: &str = "
global:
  spire:
    recommendations: {enabled: true}
    namespaces: {create: true}
    clusterName: test
    trustDomain: bank.example
    caSubject: {country: CH, organization: Bank, commonName: bank.example}
";

/// Those that it has for a quick look, which are none. Ours is another trust domain.
pub(super) const QUICK: &str = "
global:
  spire: {clusterName: test, trustDomain: bank.example}
";

/// What is this machine's: images that were made here, no disk to be had, no kube-proxy.
pub(super) fn spire(servers: &str) -> Value {
    let image =
        |name: &str| json!({"registry": "localhost", "repository": name, "tag": "1", "pullPolicy": "Never"});
    let kubectl = json!({"kubectl": {"image": image("kubectl")}});
    json!({
        "spire-server": {
            "image": image("spire-server"),
            "persistence": {"type": "emptyDir"},
            "controllerManager": {"image": image("spire-controller-manager")},
            "chown": {"image": image("bash")},
            "tools": kubectl,
        },
        "spire-agent": {
            "image": image("spire-agent"),
            "server": {"address": format!("pods.{servers}"), "port": 8081},
            "socketAlternate": {"image": image("bash")},
            "fsGroupFix": {"image": image("bash")},
        },
        "spiffe-csi-driver": {"enabled": false},
        "spiffe-oidc-discovery-provider": {"enabled": false},
    })
}

/// Ours that the page says nothing of: images, and a store.
pub(super) fn ours() -> Value {
    let image = |name: &str| format!("localhost/countersign-{name}");
    let images = Images { driver: image("driver"), agent: image("agent"), tag: String::new() };
    let mut values = values(&images, "debug");
    if let Some(rule) = values.pointer_mut("/sops/allow/0/id") {
        *rule = json!(format!("spiffe://{TRUST_DOMAIN}/ns/*/sa/*"));
    }
    values
}

/// Makes what the charts run, of the programs that were built, and hands it to the node.
pub(super) fn images(directory: &Path) -> Result<()> {
    let [server, agent, controller, kubectl] = TOOLS.map(tool);
    let (server, agent, controller, kubectl, bash) =
        (server?, agent?, controller?, kubectl?, installed("bash")?);
    let all: [(&str, &Path, &str, &[&str]); 5] = [
        ("spire-server", &server, "/opt/spire/bin/spire-server", &["/opt/spire/bin/spire-server", "run"]),
        ("spire-agent", &agent, "/opt/spire/bin/spire-agent", &["/opt/spire/bin/spire-agent", "run"]),
        (
            "spire-controller-manager",
            &controller,
            "/spire-controller-manager",
            &["/spire-controller-manager"],
        ),
        ("kubectl", &kubectl, "/bin/kubectl", &["/bin/kubectl"]),
        ("bash", &bash, "/bin/bash", &["/bin/bash"]),
    ];
    for (name, program, there, entrypoint) in all {
        let archive = directory.join(format!("{name}.tar"));
        let tagged = format!("localhost/{name}:1");
        let image = Image { name: &tagged, programs: &[(program, there)], files: &[], entrypoint };
        make(&archive, &image)?;
        load(&archive)?;
        std::fs::remove_file(&archive)?;
    }
    Ok(())
}

/// A copy of the charts that helm may write into.
pub(super) fn copied(charts: &Path, directory: &Path) -> Result<PathBuf> {
    let copy = directory.join("charts");
    let output = Command::new("cp")
        .args(["--recursive", "--no-preserve=ownership"])
        .arg(charts)
        .arg(&copy)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(copy)
}
