//! `explain` beside a node that runs: what Vault answered last to each reference.

use std::process::Command;

use anyhow::{Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, TRUST_DOMAIN};
use countersign_tests::processes::Binaries;
use countersign_vault_tests::world::{Plan, in_world};

use crate::asking::{one, pod};

pub(crate) fn cases() -> Vec<Case> {
    vec![case("explain::what_vault_answered_last", Needs::Root, what_vault_answered_last)]
}

const MANIFEST: &str = r#"
kind: Pod
metadata:
  name: api-1
  namespace: payments
  annotations:
    countersign.dev/inject: "true"
    secret.countersign.dev/a: vault:kv/data/payments#password
    secret.countersign.dev/b: vault:kv/data/forbidden#x?optional
    secret.countersign.dev/c: vault:kv/data/elsewhere#x
spec: { serviceAccountName: api }
"#;

async fn what_vault_answered_last() -> Result<()> {
    in_world(Plan::default(), async |world| {
        let asked = one("vault:kv/data/payments#password").secret("b", "vault:kv/data/forbidden#x?optional");
        let mut runs = world.node.published(&pod("api-1"), one("vault:kv/data/payments#password")).await?;
        let mut waits = world.node.volume(&pod("api-2"), asked);
        ensure!(waits.publish_once().await.is_err(), "to be denied is no way to be optional");
        let manifest = world.vault.directory().join("pod.yaml");
        std::fs::write(&manifest, MANIFEST)?;
        let socket = world.node.layout.link.join("answers.sock");
        let explain = |answers: &std::path::Path| {
            Command::new(Binaries::find()?.agent)
                .args(["explain", "--trust-domain", TRUST_DOMAIN])
                .arg("--config")
                .arg(&world.node.layout.config)
                .arg("--answers")
                .arg(answers)
                .arg(&manifest)
                .output()
                .map_err(anyhow::Error::from)
        };
        let output = explain(&socket)?;
        let (said, complained) =
            (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
        ensure!(output.status.success(), "{said}{complained}");
        ensure!(said.contains("      vault:kv/data/payments: version 1@20"), "{said}");
        ensure!(said.contains("      vault:kv/data/elsewhere: nothing; no pod of this identity"), "{said}");
        ensure!(!said.contains("first-password"), "a value: {said}");
        let output = explain(&socket.with_file_name("none.sock"))?;
        let complained = String::from_utf8_lossy(&output.stderr);
        ensure!(
            complained.contains("--answers") && complained.contains("is an agent running"),
            "{complained}"
        );
        waits.unpublish(SOON).await?;
        runs.unpublish(SOON).await
    })
    .await
}
