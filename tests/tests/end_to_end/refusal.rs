//! Bad input through the real CSI socket: what the user reads, with which code, and that nothing is left.

use anyhow::{Result, ensure};
use countersign_proto::csi::NodePublishVolumeRequest;
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::kubelet::{TOKENS_KEY, tokens};
use countersign_tests::mount;
use countersign_tests::node::{Allow, NODE, Node, SOON, Setup, on_node};
use countersign_tests::pods::{Pod, Volume};
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

/// One try. It must fail with this code and a message with all these parts, and leave nothing.
async fn refuses(
    node: &Node,
    what: &str,
    pod: &Pod,
    asked: Volume,
    change: impl FnOnce(&mut NodePublishVolumeRequest),
    code: Code,
    parts: &[&str],
) -> Result<()> {
    let mut volume = node.volume(pod, asked);
    let mut request = node.kubelet.publish_request(&volume.pod, &volume.volume)?;
    change(&mut request);
    let status = match volume.publish_with(request).await {
        Ok(()) => Status::ok("published"),
        Err(status) => status,
    };
    let message = status.message();
    ensure!(status.code() == code, "{what}: {:?} and not {code:?}: {message}", status.code());
    for part in parts {
        ensure!(message.contains(part), "{what}: no {part:?} in: {message}");
    }
    ensure!(!message.contains("CANARY") && !message.contains("eyJ"), "{what}: a secret in: {message}");
    ensure!(
        !message.ends_with('.') && !message.contains('\n'),
        "{what}: one sentence without a full stop: {message}"
    );
    ensure!(mount::beneath(&node.layout.kubelet_root)?.is_empty(), "{what}: a mount is left");
    // What may heal is unpublished by kubelet; after a final answer the driver has left nothing behind.
    volume.unpublish(SOON).await?;
    let held = node.volumes_held().await?;
    ensure!(held == 0.0, "{what}: the agent holds {held} volumes");
    Ok(())
}

/// How a request is tampered with.
type Change = fn(&mut NodePublishVolumeRequest);

const POD_UID: &str = "csi.storage.k8s.io/pod.uid";

async fn of_what_kubelet_would_not_send() -> Result<()> {
    on_node(setup(), async |node| {
        with_password(node)?;
        let table: &[(&str, Change, Code, &[&str])] = &[
            (
                "no pod info",
                |r| r.volume_context.retain(|key, _| !key.contains("/pod.")),
                Code::InvalidArgument,
                &["csi.storage.k8s.io/pod", "podInfoOnMount"],
            ),
            (
                "another pod's uid",
                |r| {
                    drop(
                        r.volume_context
                            .insert(POD_UID.into(), "00000000-0000-4000-8000-000000000000".into()),
                    );
                },
                Code::InvalidArgument,
                &["pod.uid"],
            ),
            (
                "a uid with a path in it",
                |r| drop(r.volume_context.insert(POD_UID.into(), "../../x".into())),
                Code::InvalidArgument,
                &["pod.uid"],
            ),
            (
                "a forged volume id",
                |r| r.volume_id = format!("csi-{}", "0".repeat(64)),
                Code::InvalidArgument,
                &["volume"],
            ),
            (
                "a forged key of kubelet's",
                |r| drop(r.volume_context.insert("csi.storage.k8s.io/forged".into(), "x".into())),
                Code::InvalidArgument,
                &["csi.storage.k8s.io/forged"],
            ),
            (
                "tokens among the attributes",
                |r| {
                    if let Some(tokens) = r.secrets.get(TOKENS_KEY).cloned() {
                        r.volume_context.insert(TOKENS_KEY.into(), tokens);
                    }
                },
                Code::InvalidArgument,
                &[TOKENS_KEY],
            ),
            ("not read-only", |r| r.readonly = false, Code::InvalidArgument, &["readOnly: true"]),
            (
                "a persistent volume",
                |r| drop(r.volume_context.insert("csi.storage.k8s.io/ephemeral".into(), "false".into())),
                Code::InvalidArgument,
                &["ephemeral"],
            ),
            ("no capability", |r| r.volume_capability = None, Code::InvalidArgument, &["capability"]),
            ("no volume id", |r| r.volume_id.clear(), Code::InvalidArgument, &["volume"]),
        ];
        for (what, change, code, parts) in table {
            refuses(node, what, &pod(), password(), change, *code, parts).await?;
        }
        Ok(())
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
        let table = [
            ("expired", AUDIENCE, changed("/exp", json!(1_000_000))?, "expired"),
            ("for another audience", AUDIENCE, changed("/aud", json!(["vault"]))?, "audience"),
            (
                "of another pod",
                AUDIENCE,
                changed("/kubernetes.io/pod/uid", json!("00000000-0000-4000-8000-000000000000"))?,
                "pod",
            ),
            (
                "of another account",
                AUDIENCE,
                changed("/sub", json!("system:serviceaccount:payments:admin"))?,
                "service account",
            ),
            ("of another node", AUDIENCE, changed("/kubernetes.io/node/name", json!("node-2"))?, "node"),
            ("of another cluster", AUDIENCE, stranger.sign(&good)?, "signature"),
            ("no token at all", AUDIENCE, "not-a-token".to_owned(), "token"),
            ("under another audience", "vault", changed("/exp", good["exp"].clone())?, "countersign"),
        ];
        for (what, audience, token, part) in table {
            let secrets = tokens(&[(audience, token)].into());
            let mut volume = node.volume(&pod, password());
            let mut request = node.kubelet.publish_request(&pod, &volume.volume)?;
            request.secrets.insert(TOKENS_KEY.to_owned(), secrets);
            let status = volume.publish_with(request).await.err().unwrap_or_else(|| Status::ok("published"));
            let refused = matches!(
                status.code(),
                Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument
            );
            ensure!(refused, "{what}: {status:?}");
            ensure!(status.message().contains(part), "{what}: no {part:?} in: {}", status.message());
            ensure!(!status.message().contains("eyJ"), "{what}: a token in: {}", status.message());
            volume.unpublish(SOON).await?;
        }
        refuses(node, "no tokens", &pod, password(), |r| r.secrets.clear(), Code::InvalidArgument, &["token"])
            .await
    })
    .await
}

async fn of_keys_and_names() -> Result<()> {
    on_node(setup(), async |node| {
        with_password(node)?;
        let reference = "sops:payments/db#password";
        let long = "n".repeat(256);
        let table: &[(&str, Volume, &[&str])] = &[
            ("nothing asked", Volume::new(), &["secret.countersign.dev"]),
            (
                "unknown key",
                password().with("secrets.countersign.dev/x", reference),
                &["secrets.countersign.dev/x", "secret.countersign.dev"],
            ),
            (
                "unknown setting",
                password().with("countersign.dev/refrsh", "1s"),
                &["countersign.dev/refrsh", "countersign.dev/refresh"],
            ),
            ("empty reference", Volume::new().secret("x", ""), &["secret.countersign.dev/x"]),
            ("no store", Volume::new().secret("x", "payments/db"), &["secret.countersign.dev/x"]),
            ("unknown store", Volume::new().secret("x", "sopz:payments/db#password"), &["sopz", "sops"]),
            ("dots", Volume::new().secret("a/../../x", reference), &["a/../../x"]),
            ("absolute", Volume::new().secret("/x", reference), &["/x"]),
            ("doubled dots first", Volume::new().secret("..x", reference), &["..x"]),
            ("too long", Volume::new().secret(&long, reference), &["255"]),
            ("file and directory", password().secret("password/x", reference), &["password"]),
            ("same file twice", password().template("password", "x"), &["password"]),
            ("unknown option", Volume::new().secret("x", "sops:payments/db#password?optinal"), &["optinal"]),
            (
                "template that does not parse",
                Volume::new().template("t", "{{ secret( }}"),
                &["template.countersign.dev/t"],
            ),
            (
                "template with an unknown variable",
                Volume::new().template("t", "{{ nothing }}"),
                &["template.countersign.dev/t", "nothing"],
            ),
            (
                "template without an end",
                Volume::new().template(
                    "t",
                    "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
                ),
                &["template.countersign.dev/t"],
            ),
            ("refresh of nothing", password().refresh("soon"), &["countersign.dev/refresh"]),
        ];
        for (what, asked, parts) in table {
            refuses(node, what, &pod(), asked.clone(), |_| {}, Code::InvalidArgument, parts).await?;
        }
        Ok(())
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
        let secret = |reference: &str| Volume::new().secret("x", reference);
        let table: &[(&str, Volume, Code, &[&str])] = &[
            ("unknown secret", secret("sops:payments/nothing#x"), Code::NotFound, &["sops:payments/nothing"]),
            ("unknown field", secret("sops:payments/db#pasword"), Code::NotFound, &["pasword", "password"]),
            (
                "not encrypted",
                secret("sops:payments/plain#password"),
                Code::FailedPrecondition,
                &["payments/plain"],
            ),
            ("torn", secret("sops:payments/torn#password"), Code::FailedPrecondition, &["payments/torn"]),
            (
                "tampered with",
                secret("sops:payments/mac#passwort"),
                Code::FailedPrecondition,
                &["payments/mac"],
            ),
            (
                "not allowed",
                secret("sops:other/db#password"),
                Code::PermissionDenied,
                &["sops:other/db", "spiffe://example.org/ns/payments/sa/api"],
            ),
            ("out of the directory", secret("sops:../agent/age#x"), Code::InvalidArgument, &[".."]),
        ];
        for (what, asked, code, parts) in table {
            refuses(node, what, &pod(), asked.clone(), |_| {}, *code, parts).await?;
        }
        let other = Pod::new("payments", "reporting-1", "reporting");
        let parts = ["sops:payments/db", "spiffe://example.org/ns/payments/sa/reporting"];
        refuses(node, "another account", &other, password(), |_| {}, Code::PermissionDenied, &parts).await
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
        refuses(
            node,
            "outside of kubelet's root",
            &pod(),
            password(),
            elsewhere,
            Code::InvalidArgument,
            &["target"],
        )
        .await?;
        let dots = |r: &mut NodePublishVolumeRequest| {
            r.target_path = r.target_path.replace("/mount", "/../secrets/mount");
        };
        refuses(node, "a path with dots", &pod(), password(), dots, Code::InvalidArgument, &["target"])
            .await?;

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
        refuses(
            node,
            "a large secret",
            &pod(),
            password(),
            |_| {},
            Code::FailedPrecondition,
            &["--volume-capacity"],
        )
        .await?;
        node.store.write("payments/db", &json!({"password": "x"}))?;
        let mut many = Volume::new();
        for index in 0..1000 {
            many = many.secret(&format!("f{index}"), "sops:payments/db#password");
        }
        let mut volume = node.volume(&pod(), many);
        // A thousand files are either served whole or refused whole.
        match volume.publish_once().await {
            Ok(()) => ensure!(countersign_tests::reader::read(&volume.target())?.len() == 1000, "all files"),
            Err(status) => ensure!(
                matches!(
                    status.code(),
                    Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted
                ),
                "{status:?}"
            ),
        }
        volume.unpublish(SOON).await
    })
    .await
}
