//! The process with power holds no secrets; the process with secrets holds no power.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{Node, SOON, Setup, on_node};
use countersign_tests::pods::{Pod, Volume};
use countersign_tests::processes::{AGENT_UID, Descriptor, Status};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("confinement::the_agent_has_no_power", Needs::Mounts, the_agent_has_no_power),
        case("confinement::the_agent_reaches_no_host_file", Needs::Root, the_agent_reaches_no_host_file),
        case("confinement::the_driver_has_no_network", Needs::Mounts, the_driver_has_no_network),
        case("confinement::the_driver_holds_no_secret", Needs::Root, the_driver_holds_no_secret),
        case("confinement::the_link_is_closed_to_others", Needs::Root, the_link_is_closed_to_others),
    ]
}

async fn published(node: &Node) -> Result<countersign_tests::kubelet::PodVolume> {
    node.store.write("payments/db", &json!({"password": "CANARY-7d1c55b0"}))?;
    let asked = Volume::new().secret("a", "sops:payments/db#password");
    node.published(&Pod::new("payments", "api-1", "api"), asked).await
}

/// The status of every thread of a process.
fn threads(pid: u32) -> Result<Vec<Status>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread: u32 = entry?.file_name().to_string_lossy().parse()?;
        found.push(Status::of(thread)?);
    }
    Ok(found)
}

async fn the_agent_has_no_power() -> Result<()> {
    on_node(Setup::default(), async |node| {
        let mut volume = published(node).await?;
        for process in [&node.agent, &node.issuer].into_iter().flatten() {
            for status in threads(process.pid())? {
                ensure!(status.effective == 0 && status.bounding == 0, "{}: {status:?}", process.name());
                ensure!(status.no_new_privileges, "{}: {status:?}", process.name());
                ensure!(status.uid == node.confinement().uid(), "{}: {status:?}", process.name());
            }
        }
        // Whoever has the agent's rights can't mount.
        let tried = node
            .confinement()
            .command("mount".as_ref())
            .args(["-t", "tmpfs", "none"])
            .arg(volume.target())
            .stderr(Stdio::null())
            .status()?;
        ensure!(!tried.success(), "the agent's rights are enough to mount");
        volume.unpublish(SOON).await
    })
    .await
}

async fn the_agent_reaches_no_host_file() -> Result<()> {
    on_node(Setup::default(), async |node| {
        let mut volume = published(node).await?;
        let status = node.agent.as_ref().context("the agent")?.status()?;
        ensure!(status.uid == AGENT_UID, "{status:?}");
        let root = node.layout.kubelet_root.clone();
        for path in [root.clone(), root.join("pods"), volume.target(), volume.target().join("a")] {
            let tried = node
                .confinement()
                .command("stat".as_ref())
                .arg(path.join("."))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            ensure!(!tried.success(), "the agent's rights reach {}", path.display());
        }
        // What it holds of the host are its volumes and nothing above them.
        let pid = node.agent.as_ref().context("the agent")?.pid();
        for descriptor in Descriptor::all(pid)? {
            let above = fs::metadata(format!("/proc/{pid}/fd/{}/..", descriptor.number));
            let itself = fs::metadata(format!("/proc/{pid}/fd/{}", descriptor.number));
            if let (Ok(above), Ok(itself)) = (above, itself) {
                use std::os::unix::fs::MetadataExt;
                ensure!(above.dev() == itself.dev(), "{descriptor:?} leads to another file system");
            }
        }
        volume.unpublish(SOON).await
    })
    .await
}

async fn the_driver_has_no_network() -> Result<()> {
    on_node(Setup::default(), async |node| {
        let mut volume = published(node).await?;
        let pid = node.driver.as_ref().context("the driver")?.pid();
        for status in threads(pid)? {
            ensure!(status.seccomp == 2, "a thread without a filter: {status:?}");
        }
        let mut inodes = Vec::new();
        for family in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet", "netlink"] {
            let table = fs::read_to_string(format!("/proc/{pid}/net/{family}")).unwrap_or_default();
            inodes.extend(table.split_whitespace().map(|word| format!("socket:[{word}]")));
        }
        for descriptor in Descriptor::all(pid)? {
            let target = descriptor.target.to_string_lossy().into_owned();
            ensure!(!inodes.contains(&target), "the driver has a network socket: {descriptor:?}");
        }
        volume.unpublish(SOON).await
    })
    .await
}

/// Searches the writable memory of the driver after a publish: tokens pass through it (kubelet hands them over),
/// secrets never do.
async fn the_driver_holds_no_secret() -> Result<()> {
    on_node(Setup::default(), async |node| {
        let mut volume = published(node).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let search = |pid: u32| -> Result<bool> {
            use std::os::unix::fs::FileExt;
            let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
            let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
            for line in maps.lines().filter(|line| line.contains(" rw")) {
                let range = line.split(' ').next().and_then(|range| range.split_once('-'));
                let (from, to) = range.context("a range")?;
                let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
                let mut bytes = vec![0; usize::try_from(to - from)?];
                if memory.read_at(&mut bytes, from).is_ok()
                    && bytes.windows(15).any(|window| window == b"CANARY-7d1c55b0")
                {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        ensure!(
            !search(node.driver.as_ref().context("the driver")?.pid())?,
            "the secret is in the driver's memory"
        );
        // The search finds what is there.
        ensure!(search(std::process::id())?, "the search finds our own copy");
        volume.unpublish(SOON).await
    })
    .await
}

async fn the_link_is_closed_to_others() -> Result<()> {
    on_node(Setup::default(), async |node| {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let mut sockets = 0;
        for entry in fs::read_dir(&node.layout.link)? {
            let entry = entry?;
            if entry.file_type()?.is_socket() {
                let mode = entry.metadata()?.mode() & 0o777;
                ensure!(mode == 0o600, "{}: {mode:o}", entry.path().display());
                sockets += 1;
            }
        }
        ensure!(sockets >= 2, "agent.sock and mailbox.sock");
        let csi = fs::metadata(node.layout.csi_socket()?)?;
        ensure!(csi.mode() & 0o777 == 0o600, "{:o}", csi.mode());
        Ok(())
    })
    .await
}
