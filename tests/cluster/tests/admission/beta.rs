//! The policy as the chart has it for a Kubernetes that knows it as beta, in an API server that serves both: whether its
//! beta takes it, and does the same with it.

use std::process::Command;

use anyhow::{Result, ensure};
use countersign_cluster::admission::post::delete;
use countersign_cluster::tools::tool;
use countersign_tests::processes::workspace;

use crate::server::{ADMISSION, SYSTEM, Server};

/// What helm is told of such a cluster.
const CLUSTER: [&str; 2] =
    ["--kube-version=1.35.0", "--api-versions=admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy"];

/// Takes the release's policy away, and makes the other in its place. Helm itself would always take the newer.
pub(crate) async fn in_its_place(server: &Server) -> Result<()> {
    for kind in ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"] {
        delete(server.client(), &format!("{ADMISSION}/{kind}/countersign")).await?.object()?;
    }
    server.gives_nothing().await?;
    let rendered = Command::new(tool("helm")?)
        .args(["template", "countersign", "--namespace", SYSTEM])
        .args(["--show-only", "templates/admission/inject-policy.yaml"])
        .args(CLUSTER)
        .arg(workspace().join("charts/countersign"))
        .env("HOME", server.files().root())
        .output()?;
    ensure!(rendered.status.success(), "helm: {}", String::from_utf8_lossy(&rendered.stderr));
    let text = String::from_utf8(rendered.stdout)?;
    let versions: Vec<_> = text.lines().filter(|line| line.starts_with("apiVersion:")).collect();
    ensure!(versions == ["apiVersion: admissionregistration.k8s.io/v1beta1"; 2], "{versions:?}");
    let made = Command::new(tool("kubectl")?)
        .arg("--kubeconfig")
        .arg(server.files().etc("admin.kubeconfig"))
        .args(["create", "--validate=strict", "--filename"])
        .arg(server.files().write("policy.yaml", &text)?)
        .output()?;
    ensure!(made.status.success(), "kubectl: {}", String::from_utf8_lossy(&made.stderr));
    server.until("the policy", async || server.asking().await?.object().map(drop)).await
}
