//! Canaries: a secret and a token are looked for wherever they must not be.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use countersign_proto::agent::STATUS_SOCKET;
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::http::get_ok;
use countersign_tests::kubelet::TOKENS_KEY;
use countersign_tests::node::{Node, SOON, Setup, on_node};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::reader::read_file;
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "secrecy::nothing_secret_is_where_it_must_not_be",
            Needs::Mounts,
            nothing_secret_is_where_it_must_not_be,
        ),
        case(
            "secrecy::a_secret_leaves_memory_with_its_pod",
            Needs::Mounts,
            a_secret_leaves_memory_with_its_pod,
        ),
    ]
}

const SECRET: &str = "CANARY-3f9a61c2";

/// Texts by where they were found.
type Places = Vec<(String, Vec<u8>)>;

async fn nothing_secret_is_where_it_must_not_be() -> Result<()> {
    on_node(Setup { log_level: "trace", ..Setup::default() }, async |node| {
        node.store.write("payments/db", &json!({"password": SECRET, "list": [SECRET]}))?;
        let mut places = Places::new();
        let mut canaries = vec![SECRET.to_owned()];
        let pod = Pod::new("payments", "api-1", "api");
        let asked = Volume::new()
            .secret("a", "sops:payments/db#password")
            .x509()
            .jwt("jwt", "https://api")
            .refresh("1s");
        let mut volume = node.volume(&pod, asked);
        let request = node.kubelet.publish_request(&pod, &volume.volume)?;
        let tokens: Value = serde_json::from_str(&request.secrets[TOKENS_KEY])?;
        let token = tokens["countersign"]["token"].as_str().context("a token")?.to_owned();
        volume.publish_with(request).await?;
        // Parts that are secret: the signatures, and the body of the key.
        canaries.push(token.rsplit('.').next().context("a signature")?.to_owned());
        let jwt = read_file(&volume.target(), "jwt")?;
        canaries.push(jwt.rsplit('.').next().context("a signature")?.to_owned());
        let key = read_file(&volume.target(), "tls.key")?;
        canaries.push(key.lines().nth(1).context("a key")?.to_owned());
        let agent_token = fs::read_to_string(&node.layout.agent_token)?;
        canaries.push(agent_token.rsplit('.').next().context("a signature")?.to_owned());
        // The store is listed with errors of every kind on the way.
        for reference in ["sops:payments/db#nothing", "sops:payments/db#/list/7", "sops:other/db#x"] {
            let mut refused =
                node.volume(&Pod::new("payments", "api-2", "api"), Volume::new().secret("x", reference));
            let status = refused.publish_once().await.err().context("refused")?;
            places.push((format!("the error for {reference}"), status.message().as_bytes().to_vec()));
            refused.unpublish(SOON).await?;
        }
        let template = Volume::new().template("t", "{{ secret(\"sops:payments/db\").password.no.such }}");
        let mut refused = node.volume(&Pod::new("payments", "api-3", "api"), template);
        let status = refused.publish_once().await.err().context("refused")?;
        places.push(("the error of a template".to_owned(), status.message().as_bytes().to_vec()));
        refused.unpublish(SOON).await?;
        node.store.write("payments/db", &json!({"password": format!("{SECRET}-2")}))?;
        node.arrives(&volume, "a", &format!("{SECRET}-2")).await?;

        collect(node, &volume.target(), &mut places).await?;
        for (place, text) in &places {
            for canary in &canaries {
                let found = text.windows(canary.len()).any(|window| window == canary.as_bytes());
                ensure!(!found, "something secret is in {place}");
            }
        }
        ensure!(places.len() > 20, "looked at {} places only", places.len());
        volume.unpublish(SOON).await
    })
    .await
}

async fn collect(node: &Node, target: &Path, places: &mut Places) -> Result<()> {
    for process in [&node.driver, &node.agent, &node.issuer].into_iter().flatten() {
        let log = fs::read(process.log())?;
        ensure!(!log.is_empty(), "{} says nothing at trace level", process.name());
        places.push((format!("the log of {}", process.name()), log));
        for file in ["environ", "cmdline"] {
            let path = format!("/proc/{}/{file}", process.pid());
            places.push((path.clone(), fs::read(&path)?));
        }
    }
    for (address, path) in [
        (node.agent_http, "/metrics"),
        (node.agent_http, "/readyz"),
        (node.issuer_http, "/metrics"),
        (node.issuer_http, "/keys"),
        (node.issuer_http, "/bundle"),
    ] {
        places.push((format!("{address}{path}"), get_ok(address, path).await?.into_bytes()));
    }
    let mut status = Vec::new();
    UnixStream::connect(node.layout.link.join(STATUS_SOCKET))?.read_to_end(&mut status)?;
    ensure!(!status.is_empty(), "the status socket says something");
    places.push(("the driver's status socket".to_owned(), status));
    files(&node.layout.kubelet_root, target, places)?;
    files(&node.layout.link, target, places)?;
    // The issuer's own key is in its root file, by request; the agent's token and age key are its inputs.
    files(&node.layout.store, target, places)
}

/// All regular files beneath a directory, and all names, except beneath the pod's own mount.
fn files(directory: &Path, target: &Path, places: &mut Places) -> Result<()> {
    let mut pending: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        if directory == target {
            continue;
        }
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let path = entry.path();
            places.push((format!("the name {}", path.display()), path.display().to_string().into_bytes()));
            if entry.file_type()?.is_dir() {
                pending.push(path);
            } else if entry.file_type()?.is_file() {
                places.push((path.display().to_string(), fs::read(&path)?));
            }
        }
    }
    Ok(())
}

/// The memory of agent and driver is read as a debugger would: while the pod runs its secret is in the agent (so the
/// search finds what there is to find), and when it has gone it is in neither.
async fn a_secret_leaves_memory_with_its_pod() -> Result<()> {
    on_node(Setup::default(), async |node| {
        let secret = format!("{SECRET}-{SECRET}-in-memory");
        node.store.write("payments/db", &json!({"password": secret}))?;
        let pod = Pod::new("payments", "api-1", "api");
        let template = r#"before {{ secret("sops:payments/db").password }} after"#;
        let asked = Volume::new().secret("a", "sops:payments/db#password").template("t", template);
        let mut volume = node.published(&pod, asked).await?;
        let agent = node.agent.as_ref().context("an agent")?.pid();
        let driver = node.driver.as_ref().context("a driver")?.pid();
        ensure!(times_in_memory(agent, &secret)? > 0, "the search finds nothing at all");
        volume.unpublish(SOON).await?;
        for (process, pid) in [("agent", agent), ("driver", driver)] {
            let left = times_in_memory(pid, &secret)?;
            ensure!(left == 0, "the secret is {left} times in the memory of the {process}");
        }
        Ok(())
    })
    .await
}

/// How often `text` stands in the writable memory of a process.
fn times_in_memory(pid: u32, text: &str) -> Result<usize> {
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut times = 0;
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let mut words = line.split(' ');
        let (range, access) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (start, end) = range.split_once('-').context("a range")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut bytes = vec![0; usize::try_from(end - start)?];
        // Guard pages and the like cannot be read.
        if access.starts_with("rw") && memory.read_exact_at(&mut bytes, start).is_ok() {
            times += bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count();
        }
    }
    Ok(times)
}
