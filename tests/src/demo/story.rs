//! The story, step by step.

mod faults;
mod refusals;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;

use super::carrier::Carrier;
use super::show::{claims, listing};
use super::transcript::Transcript;
use crate::machine::Machine;
use crate::mount::{self, Namespace, REMEDY};
use crate::node::{Allow, Node, SOON, Setup, eventually};
use crate::pods::{Pod, Volume};
use crate::processes::{Confinement, Process};
use crate::reader::{read, read_file};
use crate::tokens::decode;

/// The audience of the pod's JWT-SVID.
const API: &str = "https://api.example.com";
/// The secret the story is about.
const DATABASE: &str = "payments/database";

/// Everything the steps share.
struct Story {
    transcript: Transcript,
    node: Node,
    mounts: bool,
}

/// Tells the story. The exit code says whether every claim held.
pub(super) async fn tell(namespace: &Namespace) -> Result<ExitCode> {
    let transcript = Transcript::begin();
    transcript.title("Countersign: a secret reaches a pod, end to end on this machine, without a cluster")?;
    transcript.fact("machine", &Machine::this().to_string())?;
    transcript.fact("mounts", &namespace.to_string())?;
    if !namespace.mounts() {
        absent(&transcript, namespace)?;
    }
    let setup = Setup {
        allow: vec![Allow::new("spiffe://example.org/ns/payments/sa/api", &["payments/*"])],
        ..Setup::default()
    };
    let mut story = Story { transcript, node: Node::new(setup)?, mounts: namespace.mounts() };
    let told = story.tell().await;
    if let Err(error) = told {
        anyhow::bail!("{error:#}\n{}", story.node.said());
    }
    if !namespace.mounts() {
        absent(&story.transcript, namespace)?;
    }
    story.transcript.end()
}

/// What is missing where nothing can be mounted.
fn absent(transcript: &Transcript, namespace: &Namespace) -> Result<()> {
    transcript.notice(&format!(
        "This machine lets us mount nothing ({namespace}). The driver is not shown: the agent and the issuer are, \
         over the same link, and the agent is handed a directory on /dev/shm in place of a pod's own tmpfs. \
         To see all of it: {REMEDY}."
    ))
}

/// The pod of the story.
fn pod(mounts: bool) -> Pod {
    let pod = Pod::new("payments", "api-6d9f", "api");
    // In a user namespace no other group is mapped.
    let groups = mounts && Confinement::find().is_ok_and(|found| found == Confinement::OtherUid);
    if groups { pod.with_fs_group(2000) } else { pod }
}

/// What the pod asks for: two secrets, a template, a JWT-SVID.
fn volume() -> Volume {
    Volume::new()
        .secret("db-password", "sops:payments/database#password")
        .secret("api.json", "sops:payments/api")
        .template(
            "app.env",
            "DATABASE_URL=postgres://{{ secret(\"sops:payments/database\").username }}:{{ \
             secret(\"sops:payments/database\").password }}@db/app\n",
        )
        .jwt("ai-token", API)
        .refresh("1s")
}

impl Story {
    async fn tell(&mut self) -> Result<()> {
        self.start().await?;
        let mut carrier = self.publish().await?;
        self.look(&carrier)?;
        self.change(&carrier).await?;
        if self.mounts {
            self.lose_driver(&mut carrier).await?;
        }
        self.lose_agent(&mut carrier).await?;
        self.stranger().await?;
        self.typo().await?;
        self.end(carrier).await
    }

    fn write_password(&self, password: &str) -> Result<()> {
        self.node.store.write(DATABASE, &json!({"username": "app", "password": password}))
    }

    async fn start(&mut self) -> Result<()> {
        self.transcript.step(
            if self.mounts { "Three processes start" } else { "Two processes start" },
            "The process with power (the driver: it may mount) holds no secrets; the process with secrets \
             (the agent) holds no power. The issuer signs identities and sees no secret.",
        )?;
        self.write_password("first-password")?;
        self.node.store.write("payments/api", &json!({"key": "k-1", "url": "https://api.example.com"}))?;
        self.node.start_issuer().await?;
        self.node.start_agent().await?;
        if self.mounts {
            self.node.start_driver().await?;
        }
        let node = &self.node;
        for process in [&node.issuer, &node.agent, &node.driver].into_iter().flatten() {
            self.transcript.fact(process.name(), &rights(process)?)?;
        }
        let agent = node.agent.as_ref().context("the agent")?.status()?;
        let powerless = agent.effective == 0 && agent.no_new_privileges;
        self.transcript.claim(powerless, "the agent has no capability, and no way to get one")?;
        if let Some(driver) = &node.driver {
            let filtered = driver.status()?.seccomp == 2;
            self.transcript.claim(filtered, "the driver has denied itself the network (seccomp filter)")?;
            let plugin = node.kubelet.plugin().context("a registered driver")?;
            self.transcript.claim(
                plugin.node_id == crate::node::NODE,
                &format!("kubelet has registered {} on {}", plugin.name, plugin.node_id),
            )?;
        }
        self.transcript.done()
    }

    async fn publish(&mut self) -> Result<Carrier> {
        self.transcript.step(
            "A pod asks for two secrets, a template and a token",
            "Kubelet hands over the pod's own bound token; the agent trades it for the pod's SPIFFE identity, \
             fetches with that identity, and fills the volume before the pod can see it. No container runs yet.",
        )?;
        let pod = pod(self.mounts);
        let volume = volume();
        let who = format!("{}/{}, service account {}", pod.namespace, pod.name, pod.service_account);
        self.transcript.fact("pod", &who)?;
        let keys: Vec<String> =
            volume.attributes.iter().map(|(key, value)| format!("{key}: {}", value.trim())).collect();
        self.transcript.fact("asks for", &keys.join("\n"))?;
        let mut carrier = Carrier::new(&self.node, &pod, volume, self.mounts)?;
        let began = tokio::time::Instant::now();
        carrier.publish(&self.node).await?;
        let took = began.elapsed().as_secs_f64() * 1000.0;
        self.transcript.fact("published in", &format!("{took:.1} ms, identity and secrets included"))?;
        let files = read(&carrier.target())?;
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        self.transcript.claim(
            names == ["ai-token", "api.json", "app.env", "db-password"],
            "all four files are there at once",
        )?;
        self.transcript.done()?;
        Ok(carrier)
    }

    fn look(&mut self, carrier: &Carrier) -> Result<()> {
        self.transcript.step(
            "What the pod sees",
            "Files in memory, changed together: every name leads through ..data, which is swapped in one step. \
             The claims of the token are shown, never the token.",
        )?;
        let target = carrier.target();
        self.transcript.fact("files", &listing(&target)?)?;
        let password = read_file(&target, "db-password")?;
        let environment = read_file(&target, "app.env")?;
        self.transcript.fact("db-password", &password)?;
        self.transcript.fact("app.env", &environment)?;
        self.transcript.fact("api.json", &read_file(&target, "api.json")?)?;
        let token = read_file(&target, "ai-token")?;
        self.transcript.fact("ai-token", &claims(&token)?)?;
        self.transcript.claim(password == "first-password", "the secret is the store's, to the byte")?;
        self.transcript.claim(environment.contains("app:first-password@db"), "the template is rendered")?;
        let decoded = decode(&token)?;
        let subject = decoded.get("sub").is_some_and(|sub| sub == "spiffe://example.org/ns/payments/sa/api");
        self.transcript.claim(subject, "the token names the pod's own SPIFFE ID, for one audience")?;
        let metadata = fs::metadata(target.join("db-password"))?;
        let mode = metadata.mode() & 0o7777;
        if metadata.gid() == 2000 {
            self.transcript
                .claim(mode == 0o440, "only the agent and the pod's group 2000 (fsGroup) may read")?;
        } else {
            self.transcript.claim(mode == 0o444, "nobody may write")?;
        }
        if self.mounts {
            let mount = mount::at(&target)?.context("the volume is a mount")?;
            self.transcript.fact(
                "mount",
                &format!("{}\n{}\n{}", mount.source, mount.options.join(","), mount.filesystem.join(",")),
            )?;
            let safe = ["ro", "nosuid", "nodev", "noexec"]
                .iter()
                .all(|option| mount.options.iter().any(|o| o == option));
            self.transcript.claim(
                safe && mount.kind == "tmpfs",
                "a tmpfs of its own, read-only, nosuid, nodev, noexec",
            )?;
        }
        self.transcript.done()
    }

    /// The secret changes at the store: the new one arrives.
    async fn change(&mut self, carrier: &Carrier) -> Result<()> {
        self.transcript.step(
            "The secret is changed at the store",
            "Here the SOPS file is encrypted anew. The pod need not restart, and no file is ever half of one state and half of \
             another. The pod asked to look every second; the default is a minute.",
        )?;
        self.rotate(carrier, "second-password").await?;
        let environment = read_file(&carrier.target(), "app.env")?;
        self.transcript
            .claim(environment.contains("app:second-password@db"), "the template changed with it")?;
        self.transcript.done()
    }

    /// Changes the password and waits until the pod has it.
    async fn rotate(&mut self, carrier: &Carrier, password: &str) -> Result<()> {
        self.write_password(password)?;
        let began = tokio::time::Instant::now();
        let target = carrier.target();
        let seen = async || read_file(&target, "db-password").is_ok_and(|text| text == password);
        let arrived = eventually(SOON, "the new password", seen).await.is_ok();
        let took = began.elapsed().as_secs_f64();
        self.transcript.fact("db-password", &read_file(&target, "db-password")?)?;
        self.transcript.claim(arrived, &format!("{password} is in the running pod's files after {took:.2} s"))
    }

    async fn end(&mut self, carrier: Carrier) -> Result<()> {
        self.transcript.step("The pod goes", "Its volume goes with it, and every trace of it.")?;
        carrier.unpublish(&self.node).await?;
        if self.mounts {
            let mounts = mount::beneath(&self.node.layout.kubelet_root)?;
            self.transcript.claim(mounts.is_empty(), "no mount is left")?;
            let remains = self.node.kubelet.remains()?;
            self.transcript.claim(remains.is_empty(), "no directory is left")?;
        }
        let node = &self.node;
        let held = async || node.volumes_held().await.is_ok_and(|held| held == 0.0);
        let empty = eventually(SOON, "the agent holds nothing", held).await.is_ok();
        self.transcript.claim(empty, "the agent holds no volume (its /metrics: countersign_volumes 0)")?;
        self.transcript.done()
    }
}

/// Who a process is and what it may do.
fn rights(process: &Process) -> Result<String> {
    let status = process.status()?;
    let capabilities = match (status.effective, status.bounding) {
        (0, 0) => "none, ever".to_owned(),
        (0, _) => "none".to_owned(),
        (effective, _) => format!("{} of them", effective.count_ones()),
    };
    let filter = if status.seccomp == 2 { ", seccomp filter" } else { "" };
    Ok(format!("pid {}, uid {}, capabilities: {capabilities}{filter}", process.pid(), status.uid))
}
