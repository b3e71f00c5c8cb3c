//! Runs csi-sanity against the real driver, with the real agent, issuer and a store behind it.
//!
//! csi-sanity was written for storage that a controller creates. A stand-in with one socket lets it ask a node
//! plugin for inline volumes: see `amend` for all that the stand-in changes, `controller` for what it makes up, and
//! `specs` for what can't be asked all the same.

mod amend;
mod controller;
mod report;
mod shim;
mod specs;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use countersign_tests::mount;
use countersign_tests::node::{Node, Setup, on_node};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::processes::{tail, workspace};
use serde_json::json;

use crate::amend::Target;
use crate::controller::Inline;
use crate::report::Judgement;
use crate::shim::{Refusal, Refusals};

/// csi-sanity against the driver of Countersign.
#[derive(Debug, Parser)]
struct Arguments {
    /// The csi-sanity binary (`tests/tools/build.sh csi-sanity` builds it and prints where it is).
    #[arg(long)]
    csi_sanity: PathBuf,
    /// Only specs whose name matches this regular expression; what is left out is not judged.
    #[arg(long)]
    focus: Option<String>,
}

/// A run takes seconds; this is for one that hangs.
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            say(&format!("countersign-conformance: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    // First of all: it starts this program anew, and tries it without arguments.
    let namespace = mount::enter()?;
    let arguments = Arguments::parse();
    ensure!(namespace.mounts(), "csi-sanity needs mounts, and there are {namespace}; {}", mount::REMEDY);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let judgement = runtime.block_on(async {
        let mut judgement = None;
        let all = async |node: &mut Node| {
            judgement = Some(conform(node, &arguments).await?);
            Ok(())
        };
        on_node(Setup::default(), all).await?;
        judgement.context("no specs ran")
    })?;
    let (passed, failed, skipped) = judgement.counts();
    say(&format!("{judgement}{passed} passed, {failed} failed, {skipped} skipped"));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One pod with one volume, published and unpublished by every spec that wants to.
async fn conform(node: &Node, arguments: &Arguments) -> Result<Judgement> {
    node.store.write("payments/api", &json!({"password": "correct horse"}))?;
    let pod = Pod::new("payments", "sanity", "api").with_fs_group(2000);
    let volume = Volume::new()
        .secret("db-password", "sops:payments/api#password")
        .template("app.env", "PASSWORD={{ secret(\"sops:payments/api\").password }}\n")
        .jwt("token", "https://api.example.org")
        .x509();
    let rightful = node.kubelet.publish_request(&pod, &volume)?;
    let kubelet = node.kubelet.target(&pod, &volume);
    let parent = kubelet.parent().context("a target has a parent")?;
    // csi-sanity makes and removes the last directory itself.
    fs::create_dir_all(parent.parent().context("a volume's directory has a parent")?)?;

    let work = node.layout.scratch.path();
    let secrets = work.join("csi-secrets.yaml");
    // JSON is YAML.
    fs::write(&secrets, json!({"NodePublishVolumeSecret": rightful.secrets}).to_string())?;
    let socket = work.join("sanity.sock");
    let target = Target { sanity: text(&parent.join("target"))?, kubelet: text(&kubelet)? };
    let inline = Inline { volume_id: rightful.volume_id, volume_context: rightful.volume_context };
    let refusals = Refusals::default();
    let plugin = node.kubelet.plugin().context("the driver is registered")?;
    let report = work.join("sanity.json");
    let said = work.join("sanity.log");
    let mut sanity = tokio::process::Command::new(&arguments.csi_sanity);
    sanity
        .arg(format!("--csi.endpoint={}", text(&socket)?))
        .arg(format!("--csi.mountdir={}", text(parent)?))
        .arg(format!("--csi.stagingdir={}", text(&work.join("staging"))?))
        .arg(format!("--csi.secrets={}", text(&secrets)?))
        .arg(format!("--csi.checkpathcmd={}", text(&workspace().join("conformance/check-path.sh"))?))
        .arg(format!("--ginkgo.json-report={}", text(&report)?))
        .args(["--ginkgo.no-color", "--ginkgo.seed=1"])
        .args(arguments.focus.as_ref().map(|focus| format!("--ginkgo.focus={focus}")))
        .stdin(Stdio::null())
        .stdout(File::create(&said)?)
        .stderr(File::options().append(true).open(&said)?)
        .kill_on_drop(true);
    let run = async {
        let mut child = sanity.spawn().with_context(|| {
            format!("{}: `tests/tools/build.sh csi-sanity` builds it", arguments.csi_sanity.display())
        })?;
        let ended = tokio::time::timeout(LIMIT, child.wait()).await;
        Ok(ended.with_context(|| format!("csi-sanity has not ended within {LIMIT:?}"))??)
    };
    let serving = shim::serve(&socket, plugin.endpoint.clone(), target, inline, Arc::clone(&refusals));
    let status = tokio::select! {
        status = run => status,
        served = serving => served.and_then(|()| bail!("the stand-in ended before csi-sanity did")),
    };
    let status = status.with_context(|| tail(&said, 40))?;
    let specs = report::read(&fs::read(&report).with_context(|| tail(&said, 40))?)?;
    tell_refusals(&refusals);
    let mut judgement = report::judge(&specs);
    if arguments.focus.is_none() && status.success() != (judgement.failed() == 0) {
        judgement.faults.push(format!("csi-sanity ended with {status}, which its report does not tell"));
    }
    if !judgement.faults.is_empty() {
        say(&node.said());
    }
    remove_pod(node, &pod)?;
    Ok(judgement)
}

/// What a user would have read: each refusal once.
fn tell_refusals(refusals: &Refusals) {
    let refusals = refusals.lock().unwrap_or_else(PoisonError::into_inner);
    let lines: BTreeSet<_> = refusals
        .iter()
        .map(|Refusal { call, code, message }| format!("  {call}: {code:?}: {message}"))
        .collect();
    say("what the driver refused:");
    for line in lines {
        say(&line);
    }
}

/// The directories made for the pod, which are empty if nothing leaked.
fn remove_pod(node: &Node, pod: &Pod) -> Result<()> {
    let pod = node.kubelet.root().join("pods").join(&pod.uid);
    for directory in [pod.join("volumes/kubernetes.io~csi"), pod.join("volumes"), pod] {
        fs::remove_dir(&directory).with_context(|| format!("{} is left behind", directory.display()))?;
    }
    Ok(())
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn say(text: &str) {
    println!("{text}");
}
