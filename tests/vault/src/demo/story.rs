//! The story, step by step.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Code;

use countersign_tests::demo::show::listing;
use countersign_tests::demo::transcript::Transcript;
use countersign_tests::kubelet::PodVolume;
use countersign_tests::machine::Machine;
use countersign_tests::mount::Namespace;
use countersign_tests::node::{SOON, eventually};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::reader::read_file;

use crate::postgres;
use crate::world::{Plan, World, pod};

/// The SPIFFE ID of the pod.
const ID: &str = "spiffe://example.org/ns/payments/sa/api";
/// The reference to the password.
const PASSWORD: &str = "vault:kv/data/payments#password";

/// Everything the steps share.
struct Story {
    transcript: Transcript,
    world: World,
}

/// Tells the story. The exit code says whether every claim held.
pub(super) async fn tell(namespace: &Namespace) -> Result<ExitCode> {
    let mut transcript = Transcript::begin();
    transcript.title("Countersign and Vault: a pod logs in as itself, end to end on this machine")?;
    transcript.fact("machine", &Machine::this().to_string())?;
    transcript.fact("mounts", &namespace.to_string())?;
    // PostgreSQL refuses to run as root, and a user namespace has nobody else.
    let database = *namespace == Namespace::Root && postgres::is_installed();
    if !database {
        transcript.notice(
            "Without PostgreSQL (apt-get install postgresql, and root to start it as somebody else) the database \
             credentials are left out.",
        )?;
    }
    transcript.step(
        "A Vault, set up by the commands of docs/vault.md",
        "Raft storage, TLS by an authority of its own, an audit file. One policy, one role that is bound to one SPIFFE \
         ID: nothing in Vault knows of nodes or agents.",
    )?;
    let world = World::start(Plan { database, ..Plan::default() }).await?;
    transcript.fact("server", &format!("{} at {}", world.vault.binary().display(), world.vault.url()))?;
    let role = world.vault.root().read("auth/jwt/role/payments_api").await?;
    let bound = role.pointer("/data/bound_subject").and_then(Value::as_str).unwrap_or_default().to_owned();
    transcript.fact("bound_subject", &bound)?;
    transcript.claim(bound == ID, "the role is one workload's")?;
    transcript.done()?;
    let mut story = Story { transcript, world };
    if let Err(error) = story.tell().await {
        bail!("{error:#}\n{}", story.world.said());
    }
    story.transcript.end()
}

impl Story {
    async fn tell(&mut self) -> Result<()> {
        self.world.start_node().await?;
        let mut volume = self.publish().await?;
        self.who_asked()?;
        self.change(&volume).await?;
        self.stranger().await?;
        self.outage(&volume).await?;
        self.end(&mut volume).await
    }

    async fn publish(&mut self) -> Result<PodVolume> {
        self.transcript.step(
            "A pod asks for a password, a certificate and database credentials",
            "The agent logs in to Vault with the pod's own JWT-SVID, reads as the pod, and makes the certificate's key on \
             the node. No container runs yet.",
        )?;
        let mut asked = self.world.example()?.refresh("1s");
        if self.world.postgres.is_none() {
            asked.attributes.retain(|_, value| !value.contains("database/"));
        }
        let keys: Vec<String> =
            asked.attributes.iter().map(|(key, value)| format!("{key}: {}", value.trim())).collect();
        self.transcript.fact("asks for", &keys.join("\n"))?;
        let mut volume = self.world.node.volume(&pod(), asked);
        let began = Instant::now();
        volume.publish(SOON).await?;
        let took = began.elapsed().as_secs_f64() * 1000.0;
        self.transcript.fact("published in", &format!("{took:.1} ms, login and reads included"))?;
        self.transcript.fact("files", &listing(&volume.target())?)?;
        let password = read_file(&volume.target(), "db-password")?;
        self.transcript.claim(password == "first-password", "the password is Vault's, to the byte")?;
        let certificate: Value = serde_json::from_str(&read_file(&volume.target(), "cert.json")?)?;
        let key = certificate.get("private_key").and_then(Value::as_str).context("a key")?;
        let body = key.lines().nth(1).context("a body")?;
        let unseen = !self.world.vault.audit_text()?.contains(body);
        self.transcript
            .claim(unseen, "the certificate's key was made here: Vault signed a request and saw no key")?;
        if let Some(postgres) = &self.world.postgres {
            let (user, password) = credentials(&volume)?;
            self.transcript.fact("database user", &user)?;
            let opens = postgres.sql_as(&user, &password, "SELECT 1").is_ok();
            self.transcript.claim(opens, "user and password open the database")?;
        }
        self.transcript.done()?;
        Ok(volume)
    }

    fn who_asked(&mut self) -> Result<()> {
        self.transcript.step(
            "What Vault's audit log says",
            "Who asked: the workload, by name. No agent, no node, no shared role.",
        )?;
        let audit = self.world.vault.audit()?;
        let read =
            audit.iter().find(|entry| entry.reads("kv/data/payments")).context("an entry for the read")?;
        self.transcript.fact("request", &format!("{} {}", read.request.operation, read.request.path))?;
        self.transcript.fact("display_name", &read.auth.display_name)?;
        self.transcript.fact("policies", &read.auth.policies.join(", "))?;
        self.transcript
            .claim(read.auth.display_name.contains(ID), "the audit log names the pod's SPIFFE ID")?;
        let logins = audit.iter().filter(|entry| entry.is_login()).count();
        self.transcript.fact("logins", &logins.to_string())?;
        self.transcript.done()
    }

    async fn change(&mut self, volume: &PodVolume) -> Result<()> {
        self.transcript.step(
            "The password is changed in Vault",
            "The pod need not restart. It asked to look every second; the default is a minute.",
        )?;
        self.rotate(volume, "second-password").await?;
        self.transcript.done()
    }

    async fn rotate(&mut self, volume: &PodVolume, password: &str) -> Result<()> {
        self.world.vault.root().write("kv/data/payments", &json!({"data": {"password": password}})).await?;
        let began = Instant::now();
        let arrived = self.world.node.arrives(volume, "db-password", password).await.is_ok();
        let took = began.elapsed().as_secs_f64();
        self.transcript.claim(arrived, &format!("{password} is in the running pod's files after {took:.2} s"))
    }

    async fn stranger(&mut self) -> Result<()> {
        self.transcript.step(
            "Another service account asks for the same secret",
            "Same node, same agent, another identity: Vault itself refuses. This is what `kubectl describe pod` shows.",
        )?;
        let stranger = Pod::new("payments", "reports-1", "reports");
        let mut volume = self.world.node.volume(&stranger, Volume::new().secret("password", PASSWORD));
        let status = volume.publish_once().await.err().context("it is refused")?;
        self.transcript.fact("kubelet shows", &format!("{:?}\n{}", status.code(), status.message()))?;
        self.transcript.claim(status.code() == Code::PermissionDenied, "refused: PERMISSION_DENIED")?;
        volume.unpublish(SOON).await?;
        self.transcript.done()
    }

    async fn outage(&mut self, volume: &PodVolume) -> Result<()> {
        self.transcript.step(
            "Vault is killed, and comes back",
            "A pod that runs keeps its files. A pod that starts waits, says what for, and starts by itself.",
        )?;
        self.world.vault.kill()?;
        let mut waits = self.world.node.volume(
            &Pod::new("payments", "api-2", "api"),
            Volume::new().secret("user", "vault:kv/data/payments?version=1"),
        );
        let status = waits.publish_once().await.err().context("there is no Vault")?;
        self.transcript.fact("kubelet shows", &format!("{:?}\n{}", status.code(), status.message()))?;
        self.transcript.claim(status.code() == Code::Unavailable, "the new pod waits: UNAVAILABLE")?;
        let kept = read_file(&volume.target(), "db-password")? == "second-password";
        self.transcript.claim(kept, "the running pod has its files")?;
        self.world.vault.resume().await?;
        let started = waits.publish(SOON).await.is_ok();
        self.transcript.claim(started, "Vault is back, and the new pod has started by itself")?;
        waits.unpublish(SOON).await?;
        self.rotate(volume, "third-password").await?;
        self.transcript.done()
    }

    async fn end(&mut self, volume: &mut PodVolume) -> Result<()> {
        self.transcript.step("The pod goes", "Its files go with it, and what Vault made for it.")?;
        let began = Instant::now();
        volume.unpublish(SOON).await?;
        if let Some(postgres) = &self.world.postgres {
            let none = async || postgres.dynamic_users().is_ok_and(|users| users.is_empty());
            let gone = eventually(SOON, "the database user is gone", none).await.is_ok();
            let took = began.elapsed().as_secs_f64();
            self.transcript
                .claim(gone, &format!("lease revoked, database user dropped, after {took:.2} s"))?;
        }
        let clean = self.world.node.is_clean().await.is_ok();
        self.transcript.claim(clean, "no mount, no directory, no volume is left")?;
        self.transcript.done()
    }
}

/// User and password in the file that the page has for them.
fn credentials(volume: &PodVolume) -> Result<(String, String)> {
    let text = read_file(&volume.target(), "db.env")?;
    let variable = |name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.map(str::to_owned).with_context(|| format!("{name} in db.env"))
    };
    Ok((variable("PGUSER")?, variable("PGPASSWORD")?))
}
