//! What the cases have in common: one file, asked for by one pod.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::kubelet::PodVolume;
use countersign_tests::node::{Node, SOON, eventually};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::reader::read_file;
use tonic::{Code, Status};

/// A file named `a` with what a reference names.
pub(crate) fn one(reference: &str) -> Volume {
    Volume::new().secret("a", reference)
}

/// The pod of the page, by another name: each has a volume of its own.
pub(crate) fn pod(name: &str) -> Pod {
    Pod::new("payments", name, "api")
}

/// What a reference gives, read by a pod that goes again.
pub(crate) async fn value(node: &Node, reference: &str) -> Result<String> {
    let mut volume = node.published(&pod("reader"), one(reference)).await.context(reference.to_owned())?;
    let value = read_file(&volume.target(), "a")?;
    volume.unpublish(SOON).await?;
    Ok(value)
}

/// What a pod is told that asks for what it can't have, at its first try.
pub(crate) async fn refusal(node: &Node, reference: &str) -> Result<Status> {
    refusal_of(node, &pod("asker"), one(reference)).await
}

/// The same for any volume of any pod.
pub(crate) async fn refusal_of(node: &Node, pod: &Pod, volume: Volume) -> Result<Status> {
    let mut volume = node.volume(pod, volume);
    let status = volume.publish_once().await.err().context("it is refused")?;
    volume.unpublish(SOON).await?;
    Ok(status)
}

/// Sees that a pod is told all of this, with this code.
pub(crate) fn says(status: &Status, code: Code, fragments: &[&str]) -> Result<()> {
    let text = status.message();
    ensure!(status.code() == code, "{code:?} was expected, not {:?}: {text}", status.code());
    let missing: Vec<_> = fragments.iter().filter(|fragment| !text.contains(*fragment)).collect();
    ensure!(missing.is_empty(), "{missing:?} is missing in: {text}");
    Ok(())
}

/// Waits until a volume's file is another than `before`, and answers what it is.
pub(crate) async fn changed(
    volume: &PodVolume,
    file: &str,
    before: &str,
    within: Duration,
) -> Result<String> {
    let target = volume.target();
    let now = async || read_file(&target, file).is_ok_and(|now| now != before);
    eventually(within, &format!("{file} changes"), now).await?;
    read_file(&target, file)
}

/// The sum of a counter of the agent's; zero where it has not been counted yet.
pub(crate) async fn counted(node: &Node, name: &str, labels: &[&str]) -> Result<f64> {
    Ok(node.metrics().await?.sum(name, labels).unwrap_or_default())
}

/// Waits until the agent has counted more than `before`.
pub(crate) async fn counts_beyond(node: &Node, name: &str, labels: &[&str], before: f64) -> Result<()> {
    let more = async || counted(node, name, labels).await.is_ok_and(|now| now > before);
    eventually(SOON, &format!("{name} {labels:?} rises above {before}"), more).await
}
