//! Entries that nobody writes by hand: spire-controller-manager makes them from `ClusterSPIFFEID`s.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::pods::{LIMIT, uid, until};
use countersign_spire_tests::controller::{CLASS, Controller, PREFIX, ours};
use countersign_spire_tests::entry::Entry;
use countersign_spire_tests::spire::US;
use countersign_spire_tests::world::{Case, Kind, World, case, files};

use crate::life::{X509, id};

pub(crate) fn cases() -> Vec<Case> {
    vec![case("cluster_spiffe_ids_make_our_entry_and_the_pods", Kind::Alone, entries)]
}

/// As users of the hardened charts have one for all workloads.
fn workloads(namespace: &str) -> String {
    format!(
        r#"apiVersion: spire.spiffe.io/v1alpha1
kind: ClusterSPIFFEID
metadata: {{name: workloads}}
spec:
  className: {CLASS}
  spiffeIDTemplate: "spiffe://{{{{ .TrustDomain }}}}/ns/{{{{ .PodMeta.Namespace }}}}/sa/{{{{ .PodSpec.ServiceAccountName }}}}"
  namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}
"#
    )
}

/// How many entries for a SPIFFE ID the controller has made.
fn made(world: &World, id: &str) -> Result<usize> {
    Ok(world.spire.entries(id)?.iter().filter(|id| id.starts_with(PREFIX)).count())
}

async fn entries(world: Arc<World>) -> Result<()> {
    let space = world.space("controlled").await?;
    let controller = Controller::start(&world).await?;
    let outcome = async {
        // Our agent's: from the page's ClusterSPIFFEID, and from nothing else.
        world.apply(&ours()?)?;
        until(LIMIT, "an entry of ours", async || Ok((made(&world, US)? == 1).then_some(()))).await?;
        for entry in world.spire.entries(US)?.iter().filter(|id| !id.starts_with(PREFIX)) {
            world.spire.delete(entry)?;
        }
        // The pods': none is there before its pod is, and each pod has its own, and so its own key.
        world.apply(&workloads("controlled"))?;
        ensure!(world.spire.entries(&id("controlled"))?.is_empty(), "an entry of no pod");
        let (one, two) = (space.start("one", &[X509]).await?, space.start("two", &[X509]).await?);
        let (first, second) = (files(&one)?, files(&two)?);
        ensure!(first.identity()? == id("controlled") && second.identity()? == id("controlled"));
        ensure!(first.text("tls.key") != second.text("tls.key"), "two pods have one key");
        let shown = world.spire.server(&["entry", "show", "-spiffeID", &id("controlled")])?;
        ensure!(shown.contains(&format!("k8s:pod-uid:{}", uid(&one)?)), "{shown}");
        // They go with their pods.
        space.delete("one").await?;
        let left = async || Ok((made(&world, &id("controlled"))? == 1).then_some(()));
        until(LIMIT, "rid of the entry of a pod that is gone", left).await?;
        ensure!(files(&two)?.identity()? == id("controlled"));
        Ok::<_, anyhow::Error>(())
    };
    let outcome = outcome.await.with_context(|| controller.said());
    // As it was before.
    world.spire.create(&Entry::ours().living(24 * 3600))?;
    world.cluster.kubectl(&["delete", "clusterspiffeids.spire.spiffe.io", "--all"])?;
    let gone = async || Ok((made(&world, US)? + made(&world, &id("controlled"))? == 0).then_some(()));
    let cleared =
        until(LIMIT, "rid of the controller's entries", gone).await.with_context(|| controller.said());
    controller.end()?;
    outcome?;
    cleared?;
    space.remove().await
}
