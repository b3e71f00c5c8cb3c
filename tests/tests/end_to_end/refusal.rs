//! Bad input through the real CSI socket: what the user reads, with which code, and that nothing is left.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use countersign_proto::csi::NodePublishVolumeRequest;
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::kubelet::{TOKENS_KEY, tokens};
use countersign_tests::mount;
use countersign_tests::node::{Allow, NODE, Node, SOON, Setup, on_node};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::processes::{Binaries, workspace};
use countersign_tests::store::SopsStore;
use countersign_tests::tokens::{AUDIENCE, Cluster, claims};
use serde_json::{Value, json};
use tonic::{Code, Status};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("refusal::of_what_kubelet_would_not_send", Needs::Mounts, of_what_kubelet_would_not_send),
        case("refusal::of_tokens", Needs::Mounts, of_tokens),
        case("refusal::of_keys_and_names", Needs::Mounts, of_keys_and_names),
        case("refusal::by_the_store", Needs::Mounts, by_the_store),
        case("refusal::of_targets", Needs::Mounts, of_targets),
        case("refusal::of_too_much", Needs::Mounts, of_too_much),
        case("refusal::but_not_of_as_many_as_possible", Needs::Mounts, but_not_of_as_many_as_possible),
    ]
}

fn pod() -> Pod {
    Pod::new("payments", "api-1", "api")
}

fn password() -> Volume {
    Volume::new().secret("password", "sops:payments/db#password")
}

fn setup() -> Setup {
    let allow = vec![Allow::new("spiffe://example.org/ns/payments/sa/api", &["payments/*"])];
    Setup { allow, ..Setup::default() }
}

fn with_password(node: &Node) -> Result<()> {
    node.store.write("payments/db", &json!({"password": "CANARY-SECRET", "port": 5432}))
}

/// Refusals of one case: each message as the user reads it, to be compared with those on file.
struct Refusals<'node> {
    node: &'node Node,
    said: String,
}

impl<'node> Refusals<'node> {
    fn new(node: &'node Node) -> Self {
        Self { node, said: String::new() }
    }

    /// One try. It must fail with this code, in one sentence without a secret, and leave nothing.
    async fn expect(
        &mut self,
        what: &str,
        code: Code,
        pod: &Pod,
        asked: Volume,
        change: impl FnOnce(&mut NodePublishVolumeRequest),
    ) -> Result<()> {
        let node = self.node;
        let mut volume = node.volume(pod, asked);
        let mut request = node.kubelet.publish_request(&volume.pod, &volume.volume)?;
        change(&mut request);
        let status = match volume.publish_with(request).await {
            Ok(()) => Status::ok("published"),
            Err(status) => status,
        };
        let message = status.message();
        ensure!(status.code() == code, "{what}: {:?} and not {code:?}: {message}", status.code());
        ensure!(!message.contains("CANARY") && !message.contains("eyJ"), "{what}: a secret in: {message}");
        ensure!(
            !message.ends_with('.') && !message.contains('\n'),
            "{what}: one sentence, no full stop: {message}"
        );
        ensure!(mount::beneath(&node.layout.kubelet_root)?.is_empty(), "{what}: a mount is left");
        // What may heal is unpublished by kubelet; after a final answer the driver has left nothing behind.
        volume.unpublish(SOON).await?;
        let held = node.volumes_held().await?;
        ensure!(held == 0.0, "{what}: the agent holds {held} volumes");
        writeln!(self.said, "{what}\n    {code:?}\n    {}", self.plain(message, pod))?;
        Ok(())
    }

    /// Without what differs from run to run.
    fn plain(&self, message: &str, pod: &Pod) -> String {
        let scratch = self.node.layout.scratch.path().display().to_string();
        let text = message.replace(&scratch, "<root>").replace(&pod.uid, "<uid>");
        let words = text.split(' ').map(|word| {
            let address = word.starts_with("127.");
            let number = word.len() > 6 && word.bytes().all(|b| b.is_ascii_digit());
            if address {
                "<address>:"
            } else if word.starts_with("age1") {
                "<recipient>"
            } else if number {
                "<number>"
            } else {
                word
            }
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Compares all messages with those on file. `COUNTERSIGN_BLESS=1` writes the file, to be looked at with
    /// `git diff`.
    fn compare(self, case: &str) -> Result<()> {
        let file = workspace().join("tests/tests/end_to_end/refusals").join(format!("{case}.txt"));
        if std::env::var_os("COUNTERSIGN_BLESS").is_some() {
            std::fs::write(&file, &self.said)?;
        }
        let expected = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        for (said, expected) in self.said.lines().zip(expected.lines()) {
            ensure!(said == expected, "said:     {said}\nexpected: {expected}\nin {}", file.display());
        }
        ensure!(self.said == expected, "{} has other rows", file.display());
        Ok(())
    }
}

/// How a request is tampered with.
type Change = fn(&mut NodePublishVolumeRequest);

const POD_UID: &str = "csi.storage.k8s.io/pod.uid";

async fn of_what_kubelet_would_not_send() -> Result<()> {
    on_node(setup(), async |node| {
        with_password(node)?;
        let table: &[(&str, Change)] = &[
            ("no pod info", |r| r.volume_context.retain(|key, _| !key.contains("/pod."))),
            ("another pod's uid", |r| {
                drop(r.volume_context.insert(POD_UID.into(), "00000000-0000-4000-8000-000000000000".into()));
            }),
            ("a uid with a path in it", |r| drop(r.volume_context.insert(POD_UID.into(), "../../x".into()))),
            ("a forged volume id", |r| r.volume_id = format!("csi-{}", "0".repeat(64))),
            ("a forged key of kubelet's", |r| {
                drop(r.volume_context.insert("csi.storage.k8s.io/forged".into(), "x".into()));
            }),
            ("tokens among the attributes", |r| {
                if let Some(tokens) = r.secrets.get(TOKENS_KEY).cloned() {
                    r.volume_context.insert(TOKENS_KEY.into(), tokens);
                }
            }),
            ("not read-only", |r| r.readonly = false),
            ("a persistent volume", |r| {
                drop(r.volume_context.insert("csi.storage.k8s.io/ephemeral".into(), "false".into()));
            }),
            ("no capability", |r| r.volume_capability = None),
            ("no volume id", |r| r.volume_id.clear()),
        ];
        let mut refusals = Refusals::new(node);
        for (what, change) in table {
            refusals.expect(what, Code::InvalidArgument, &pod(), password(), change).await?;
        }
        refusals.compare("of_what_kubelet_would_not_send")
    })
    .await
}

async fn of_tokens() -> Result<()> {
    on_node(setup(), async |node| {
        with_password(node)?;
        let pod = pod();
        let stranger = Cluster::new()?;
        let good = claims(&pod, NODE, AUDIENCE, 600);
        let changed = |path: &str, value: Value| {
            let mut claims = good.clone();
            if let Some(place) = claims.pointer_mut(path) {
                *place = value;
            }
            node.kubelet.cluster().sign(&claims)
        };
        let (one, other) = (node.kubelet.cluster().sign(&good)?, changed("/exp", json!(4_000_000_000_u32))?);
        let signature = one.rsplit('.').next().context("a signature")?;
        let forged = format!("{}.{signature}", other.rsplit_once('.').context("a signature")?.0);
        let another = json!("00000000-0000-4000-8000-000000000000");
        let table = [
            ("an expired token", Code::Unauthenticated, AUDIENCE, changed("/exp", json!(1_000_000))?),
            (
                "a token for another audience",
                Code::Unauthenticated,
                AUDIENCE,
                changed("/aud", json!(["vault"]))?,
            ),
            (
                "a token of another pod",
                Code::PermissionDenied,
                AUDIENCE,
                changed("/kubernetes.io/pod/uid", another)?,
            ),
            (
                "a token of another account",
                Code::Unauthenticated,
                AUDIENCE,
                changed("/sub", json!("system:serviceaccount:payments:admin"))?,
            ),
            (
                "a token of another node",
                Code::PermissionDenied,
                AUDIENCE,
                changed("/kubernetes.io/node/name", json!("node-2"))?,
            ),
            ("a token of another cluster", Code::Unauthenticated, AUDIENCE, stranger.sign(&good)?),
            ("a token with a signature of another", Code::Unauthenticated, AUDIENCE, forged),
            ("what is no token", Code::Unauthenticated, AUDIENCE, "not-a-token".to_owned()),
            ("a token handed over under another audience", Code::Unauthenticated, "vault", one),
        ];
        let mut refusals = Refusals::new(node);
        for (what, code, audience, token) in table {
            let secrets = tokens(&[(audience, token)].into());
            let change =
                |r: &mut NodePublishVolumeRequest| drop(r.secrets.insert(TOKENS_KEY.to_owned(), secrets));
            refusals.expect(what, code, &pod, password(), change).await?;
        }
        refusals.expect("no tokens", Code::InvalidArgument, &pod, password(), |r| r.secrets.clear()).await?;
        refusals.compare("of_tokens")
    })
    .await
}

async fn of_keys_and_names() -> Result<()> {
    on_node(setup(), async |node| {
        with_password(node)?;
        let reference = "sops:payments/db#password";
        let long = "n".repeat(256);
        let table = [
            ("nothing asked", Volume::new()),
            ("unknown key", password().with("secrets.countersign.dev/x", reference)),
            ("unknown setting", password().with("countersign.dev/refrsh", "1s")),
            ("empty reference", Volume::new().secret("x", "")),
            ("no store", Volume::new().secret("x", "payments/db")),
            ("unknown store", Volume::new().secret("x", "sopz:payments/db#password")),
            ("dots", Volume::new().secret("a/../../x", reference)),
            ("absolute", Volume::new().secret("/x", reference)),
            ("doubled dots first", Volume::new().secret("..x", reference)),
            ("too long", Volume::new().secret(&long, reference)),
            ("file and directory", password().secret("password/x", reference)),
            ("same file twice", password().template("password", "x")),
            ("unknown option", Volume::new().secret("x", "sops:payments/db#password?optinal")),
            ("template that does not parse", Volume::new().template("t", "{{ secret( }}")),
            ("template with an unknown variable", Volume::new().template("t", "{{ nothing }}")),
            (
                "template without an end",
                Volume::new().template(
                    "t",
                    "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
                ),
            ),
            ("refresh of nothing", password().refresh("soon")),
        ];
        let mut refusals = Refusals::new(node);
        for (what, asked) in table {
            refusals.expect(what, Code::InvalidArgument, &pod(), asked, |_| {}).await?;
        }
        refusals.compare("of_keys_and_names")
    })
    .await
}

async fn by_the_store() -> Result<()> {
    on_node(setup(), async |node| {
        with_password(node)?;
        std::fs::write(node.store.file("payments/plain"), "password: CANARY-plain\n")?;
        let good = std::fs::read_to_string(node.store.file("payments/db"))?;
        std::fs::write(node.store.file("payments/torn"), good.get(..good.len() / 2).unwrap_or_default())?;
        let mac = good.replacen("password:", "passwort:", 1);
        ensure!(mac != good, "the file names its keys");
        std::fs::write(node.store.file("payments/mac"), mac)?;
        // Encrypted to somebody else.
        let stranger = node.layout.scratch.directory("stranger", 0o700)?;
        let stranger = SopsStore::new(&Binaries::find()?.agent, &stranger, &stranger.join("key"))?;
        std::fs::write(
            node.store.file("payments/sealed"),
            stranger.encrypt(&json!({"password": "CANARY"}))?,
        )?;
        let secret = |reference: &str| Volume::new().secret("x", reference);
        let table = [
            ("unknown secret", secret("sops:payments/nothing#x"), Code::NotFound),
            ("unknown field", secret("sops:payments/db#pasword"), Code::NotFound),
            ("not encrypted", secret("sops:payments/plain#password"), Code::FailedPrecondition),
            ("torn", secret("sops:payments/torn#password"), Code::FailedPrecondition),
            ("for another key", secret("sops:payments/sealed#password"), Code::FailedPrecondition),
            ("tampered with", secret("sops:payments/mac#passwort"), Code::FailedPrecondition),
            ("not allowed", secret("sops:other/db#password"), Code::PermissionDenied),
            ("out of the directory", secret("sops:../agent/age#x"), Code::InvalidArgument),
        ];
        let mut refusals = Refusals::new(node);
        for (what, asked, code) in table {
            refusals.expect(what, code, &pod(), asked, |_| {}).await?;
        }
        let other = Pod::new("payments", "reporting-1", "reporting");
        refusals.expect("another account", Code::PermissionDenied, &other, password(), |_| {}).await?;
        refusals.compare("by_the_store")
    })
    .await
}

async fn of_targets() -> Result<()> {
    on_node(setup(), async |node| {
        with_password(node)?;
        // Another's directory, by a target path that is not kubelet's.
        let outside = node.layout.scratch.directory("outside", 0o755)?;
        let elsewhere =
            |r: &mut NodePublishVolumeRequest| r.target_path = outside.join("mount").display().to_string();
        let mut refusals = Refusals::new(node);
        refusals
            .expect("outside of kubelet's root", Code::InvalidArgument, &pod(), password(), elsewhere)
            .await?;
        let dots = |r: &mut NodePublishVolumeRequest| {
            r.target_path = r.target_path.replace("/mount", "/../secrets/mount");
        };
        refusals.expect("a path with dots", Code::InvalidArgument, &pod(), password(), dots).await?;
        refusals.compare("of_targets")?;

        // A symlink where the pod's directory should be.
        let pod = pod();
        let volume = node.volume(&pod, password());
        let target = volume.target();
        let parent = target.parent().map(std::path::Path::to_owned).unwrap_or_default();
        let grandparent = parent.parent().map(std::path::Path::to_owned).unwrap_or_default();
        std::fs::create_dir_all(&grandparent)?;
        std::os::unix::fs::symlink(&outside, &parent)?;
        let mut request = node.kubelet.publish_request(&pod, &volume.volume)?;
        request.target_path = target.display().to_string();
        let plugin = node.kubelet.plugin().map(|plugin| plugin.endpoint).unwrap_or_default();
        let status = countersign_tests::kubelet::csi_node(&plugin).await?.node_publish_volume(request).await;
        let status = status.err().unwrap_or_else(|| Status::ok("published"));
        ensure!(status.code() != Code::Ok, "a symlink on the way is not followed");
        ensure!(std::fs::read_dir(&outside)?.next().is_none(), "nothing was made where the symlink leads");
        std::fs::remove_dir_all(node.layout.kubelet_root.join("pods").join(&pod.uid))?;
        Ok(())
    })
    .await
}

async fn of_too_much() -> Result<()> {
    on_node(Setup { capacity: "64KiB", ..setup() }, async |node| {
        node.store.write("payments/db", &json!({"password": "x".repeat(70 * 1024)}))?;
        let mut refusals = Refusals::new(node);
        refusals.expect("a large secret", Code::FailedPrecondition, &pod(), password(), |_| {}).await?;
        node.store.write("payments/db", &json!({"password": "x"}))?;
        refusals.expect("a thousand files", Code::InvalidArgument, &pod(), files(1000), |_| {}).await?;
        refusals.compare("of_too_much")
    })
    .await
}

fn files(count: usize) -> Volume {
    (0..count)
        .fold(Volume::new(), |volume, index| volume.secret(&format!("f{index}"), "sops:payments/db#password"))
}

async fn but_not_of_as_many_as_possible() -> Result<()> {
    on_node(setup(), async |node| {
        with_password(node)?;
        let mut volume = node.published(&pod(), files(512)).await?;
        let files = countersign_tests::reader::read(&volume.target())?;
        ensure!(files.len() == 512, "{} files", files.len());
        ensure!(files.values().all(|bytes| bytes == b"CANARY-SECRET"), "each has the secret");
        volume.unpublish(SOON).await
    })
    .await
}
