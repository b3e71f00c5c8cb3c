//! What a pod gets when all is well.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::http::get_ok;
use countersign_tests::mount;
use countersign_tests::node::{Node, Setup, on_node};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::reader::{read, read_file};
use countersign_tests::tokens::decode;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};
use x509_parser::prelude::{GeneralName, Pem, X509Certificate};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("publish::every_kind_of_file", Needs::Mounts, || every_kind_of_file(Setup::default())),
        case("publish::every_kind_of_file_where_only_attached_mounts_can_be_cloned", Needs::Mounts, || {
            every_kind_of_file(Setup {
                driver_arguments: vec!["--clone-attached".into()],
                ..Setup::default()
            })
        }),
        case(
            "publish::the_mount_is_private_and_read_only",
            Needs::Mounts,
            the_mount_is_private_and_read_only,
        ),
        case("publish::without_a_group_all_may_read", Needs::Mounts, without_a_group_all_may_read),
        case("publish::whoever_the_pod_is_may_read", Needs::Root, whoever_the_pod_is_may_read),
        case("publish::with_a_group_only_it_may_read", Needs::Root, with_a_group_only_it_may_read),
        case("publish::each_account_has_its_own_identity", Needs::Mounts, each_account_has_its_own_identity),
        case("publish::twice_is_once", Needs::Mounts, twice_is_once),
        case("publish::at_once_from_two_sides", Needs::Mounts, at_once_from_two_sides),
        case("publish::an_optional_secret_may_be_absent", Needs::Mounts, an_optional_secret_may_be_absent),
        case("publish::many_volumes_leave_nothing_behind", Needs::Mounts, many_volumes_leave_nothing_behind),
    ]
}

const API: &str = "https://api.example.com";

async fn every_kind_of_file(setup: Setup) -> Result<()> {
    on_node(setup, async |node| {
        node.store.write("payments/db", &json!({"username": "app", "password": "p w\n", "port": 5432}))?;
        let asked = Volume::new()
            .secret("password", "sops:payments/db#password")
            .secret("nested/deep/db.json", "sops:payments/db")
            .template(
                "env",
                "U={{ secret(\"sops:payments/db\").username }}:{{ secret(\"sops:payments/db\").port }}",
            )
            .x509()
            .jwt("token", API);
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), asked).await?;
        let target = volume.target();
        let files = read(&target)?;
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        ensure!(
            names == ["ca.crt", "env", "nested/deep/db.json", "password", "tls.crt", "tls.key", "token"],
            "{names:?}"
        );
        ensure!(files["password"] == b"p w\n", "bytes as they are");
        ensure!(files["env"] == b"U=app:5432", "{:?}", String::from_utf8_lossy(&files["env"]));
        let whole: Value = serde_json::from_slice(&files["nested/deep/db.json"])?;
        ensure!(whole == json!({"username": "app", "password": "p w\n", "port": 5432}), "{whole}");
        // The plain paths lead to the same bytes.
        ensure!(
            fs::read(target.join("nested/deep/db.json"))? == files["nested/deep/db.json"],
            "through the link"
        );
        certificate(&files["tls.crt"], &files["tls.key"], &files["ca.crt"])?;
        token(node, &String::from_utf8(files["token"].clone())?).await?;
        volume.unpublish(countersign_tests::node::SOON).await
    })
    .await
}

/// The chain leads to the bundle, the leaf names the pod's SPIFFE ID, and the key is the leaf's.
fn certificate(chain: &[u8], key: &[u8], bundle: &[u8]) -> Result<()> {
    let chain: Vec<Pem> = Pem::iter_from_buffer(chain).collect::<Result<_, _>>()?;
    let roots: Vec<Pem> = Pem::iter_from_buffer(bundle).collect::<Result<_, _>>()?;
    ensure!(!chain.is_empty() && !roots.is_empty(), "certificates");
    let certificates: Vec<X509Certificate<'_>> =
        chain.iter().chain(&roots).map(Pem::parse_x509).collect::<Result<_, _>>()?;
    for (index, certificate) in certificates.iter().enumerate().take(chain.len()) {
        let signed = certificates.iter().skip(index + 1);
        let mut issuers = signed.filter(|issuer| issuer.subject() == certificate.issuer());
        ensure!(
            issuers.any(|issuer| certificate.verify_signature(Some(issuer.public_key())).is_ok()),
            "a chain"
        );
    }
    let leaf = &certificates[0];
    let names = leaf.subject_alternative_name()?.context("a SAN")?.value.general_names.clone();
    let expected = [GeneralName::URI("spiffe://example.org/ns/payments/sa/api")];
    ensure!(names == expected, "{names:?}");
    ensure!(!leaf.is_ca(), "a leaf");
    let key = Pem::iter_from_buffer(key).next().context("a key")??;
    ensure!(key.label == "PRIVATE KEY", "{}", key.label);
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.contents)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(
        pair.public_key().as_ref() == leaf.public_key().subject_public_key.data.as_ref(),
        "the leaf's key"
    );
    ensure!(leaf.validity().is_valid(), "valid now");
    Ok(())
}

/// The token verifies against the keys the issuer serves.
async fn token(node: &Node, token: &str) -> Result<()> {
    let keys: JwkSet = serde_json::from_str(&get_ok(node.issuer_http, "/keys").await?)?;
    let kid = jsonwebtoken::decode_header(token)?.kid.context("a key id")?;
    let key = DecodingKey::from_jwk(keys.find(&kid).context("a key of the issuer's")?)?;
    let mut wanted = Validation::new(Algorithm::ES256);
    wanted.set_audience(&[API]);
    wanted.set_required_spec_claims(&["exp", "aud", "sub"]);
    let claims = jsonwebtoken::decode::<Value>(token, &key, &wanted)?.claims;
    ensure!(claims["sub"] == "spiffe://example.org/ns/payments/sa/api", "{claims}");
    ensure!(claims["jti"].is_string(), "{claims}");
    Ok(())
}

fn password() -> Volume {
    Volume::new().secret("password", "sops:payments/db#password")
}

fn with_password(node: &Node, password: &str) -> Result<()> {
    node.store.write("payments/db", &json!({"password": password}))
}

async fn the_mount_is_private_and_read_only() -> Result<()> {
    on_node(Setup::default(), async |node| {
        with_password(node, "x")?;
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), password()).await?;
        let target = volume.target();
        let mount = mount::at(&target)?.context("a mount")?;
        ensure!(mount.kind == "tmpfs" && mount.source == format!("countersign:{}", volume.id()), "{mount}");
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            ensure!(mount.options.iter().any(|o| o == option), "{option}: {mount}");
        }
        ensure!(mount.value("size").is_some() && mount.value("nr_inodes").is_some(), "{mount}");
        let written = fs::write(target.join("mine"), "x");
        let error = written.err().context("nothing can be written at the target")?;
        ensure!(error.kind() == std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
        volume.unpublish(countersign_tests::node::SOON).await
    })
    .await
}

async fn without_a_group_all_may_read() -> Result<()> {
    on_node(Setup::default(), async |node| {
        with_password(node, "x")?;
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), password()).await?;
        let metadata = fs::metadata(volume.target().join("password"))?;
        ensure!(metadata.mode() & 0o7777 == 0o444, "{:o}", metadata.mode());
        ensure!(metadata.uid() == node.confinement().uid(), "{}", metadata.uid());
        volume.unpublish(countersign_tests::node::SOON).await
    })
    .await
}

async fn whoever_the_pod_is_may_read() -> Result<()> {
    on_node(Setup::default(), async |node| {
        with_password(node, "x")?;
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), password()).await?;
        readable(&volume.target(), 1000, 1000, true)?;
        volume.unpublish(countersign_tests::node::SOON).await
    })
    .await
}

async fn with_a_group_only_it_may_read() -> Result<()> {
    on_node(Setup::default(), async |node| {
        with_password(node, "x")?;
        let pod = Pod::new("payments", "api-1", "api").with_fs_group(2000);
        let mut volume =
            node.published(&pod, password().secret("dir/own", "sops:payments/db#password?mode=0400")).await?;
        let target = volume.target();
        let metadata = fs::metadata(target.join("password"))?;
        ensure!(
            metadata.mode() & 0o7777 == 0o440 && metadata.gid() == 2000,
            "{:o} {}",
            metadata.mode(),
            metadata.gid()
        );
        let metadata = fs::metadata(target.join("dir/own"))?;
        ensure!(metadata.mode() & 0o7777 == 0o400, "{:o}", metadata.mode());
        let generation = fs::metadata(target.join("..data"))?;
        ensure!(generation.gid() == 2000, "{}", generation.gid());
        readable(&target, 1000, 2000, true)?;
        readable(&target, 1000, 1000, false)?;
        volume.unpublish(countersign_tests::node::SOON).await
    })
    .await
}

/// Whether a process of this uid and group can read the password, kubelet's own directories aside: a container
/// gets the volume alone.
fn readable(target: &Path, uid: u32, gid: u32, expected: bool) -> Result<()> {
    let directory = fs::File::open(target)?;
    let inherited = "cd /proc/self/fd/0 && cat password >/dev/null";
    let status = std::process::Command::new("setpriv")
        .args([
            "--reuid",
            &uid.to_string(),
            "--regid",
            &gid.to_string(),
            "--clear-groups",
            "sh",
            "-c",
            inherited,
        ])
        .stdin(directory)
        .stderr(std::process::Stdio::null())
        .status()?;
    ensure!(status.success() == expected, "uid {uid} gid {gid} may read: {}", status.success());
    Ok(())
}

async fn each_account_has_its_own_identity() -> Result<()> {
    on_node(Setup::default(), async |node| {
        let mut volumes = Vec::new();
        for account in ["api", "billing"] {
            let pod = Pod::new("payments", account, account);
            let volume = node.published(&pod, Volume::new().jwt("token", API).x509()).await?;
            let subject = decode(&read_file(&volume.target(), "token")?)?["sub"].clone();
            ensure!(subject == format!("spiffe://example.org/ns/payments/sa/{account}"), "{subject}");
            volumes.push(volume);
        }
        let keys: Vec<_> =
            volumes.iter().map(|volume| read_file(&volume.target(), "tls.key")).collect::<Result<_>>()?;
        ensure!(keys[0] != keys[1], "each has a key of its own");
        for mut volume in volumes {
            volume.unpublish(countersign_tests::node::SOON).await?;
        }
        Ok(())
    })
    .await
}

async fn twice_is_once() -> Result<()> {
    on_node(Setup::default(), async |node| {
        with_password(node, "x")?;
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), password()).await?;
        let before = fs::read_link(volume.target().join("..data"))?;
        for _ in 0..3 {
            volume.publish_once().await?;
        }
        ensure!(mount::beneath(&node.layout.kubelet_root)?.len() == 1, "one mount");
        ensure!(
            fs::read_link(volume.target().join("..data"))? == before,
            "nothing new is written for nothing new"
        );
        volume.unpublish(countersign_tests::node::SOON).await
    })
    .await
}

async fn at_once_from_two_sides() -> Result<()> {
    on_node(Setup::default(), async |node| {
        with_password(node, "x")?;
        let pod = Pod::new("payments", "api-1", "api");
        let (mut one, mut other) = (node.volume(&pod, password()), node.volume(&pod, password()));
        let outcomes = futures_util::future::join(one.publish_once(), other.publish_once()).await;
        for outcome in [&outcomes.0, &outcomes.1] {
            if let Err(status) = outcome {
                ensure!(status.code() == tonic::Code::Aborted, "{status:?}");
            }
        }
        ensure!(outcomes.0.is_ok() || outcomes.1.is_ok(), "one of them is served");
        ensure!(mount::beneath(&node.layout.kubelet_root)?.len() == 1, "one mount");
        one.publish(countersign_tests::node::SOON).await?;
        one.unpublish(countersign_tests::node::SOON).await
    })
    .await
}

async fn an_optional_secret_may_be_absent() -> Result<()> {
    on_node(Setup::default(), async |node| {
        with_password(node, "x")?;
        let asked = password().secret("extra", "sops:payments/extra#token?optional").refresh("1s");
        let mut volume = node.published(&Pod::new("payments", "api-1", "api"), asked).await?;
        ensure!(!volume.target().join("extra").exists(), "left out");
        node.store.write("payments/extra", &json!({"token": "now"}))?;
        node.arrives(&volume, "extra", "now").await?;
        volume.unpublish(countersign_tests::node::SOON).await
    })
    .await
}

async fn many_volumes_leave_nothing_behind() -> Result<()> {
    on_node(Setup::default(), async |node| {
        with_password(node, "x")?;
        let mut before = None;
        for round in 0..5 {
            let mut volumes = Vec::new();
            for index in 0..10 {
                let pod = Pod::new("payments", &format!("api-{round}-{index}"), "api");
                volumes.push(node.published(&pod, password()).await?);
            }
            for mut volume in volumes {
                volume.unpublish(countersign_tests::node::SOON).await?;
            }
            node.is_clean().await?;
            // The first round opens what stays open, such as the connection to the issuer.
            let now = node.descriptors()?.map(|list| list.len());
            let before = before.get_or_insert(now);
            ensure!(
                now[0] <= before[0] + 2 && now[1] <= before[1] + 2,
                "descriptors: {before:?}, then {now:?}"
            );
        }
        Ok(())
    })
    .await
}
