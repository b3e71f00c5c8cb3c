//! The cluster: all its parts, started in their order, and what can be done to its node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use countersign_tests::processes::Process;
use tokio::sync::Mutex;

use crate::layout::{self, Files};
use crate::names::Names;
use crate::namespace::Place;
use crate::version::Version;
use crate::{cgroups, images, parts, pki};

/// How a cluster is to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often kubelet looks at each pod again, which is also how often it publishes again. A minute by default.
    pub sync: Duration,
    /// How much the parts of Kubernetes log. From 8 on they write bodies of answers, tokens included, all by
    /// themselves.
    pub verbosity: u8,
    /// Kubelet's root directory, somewhere below `/var/lib`.
    pub kubelet: &'static str,
    /// Which Kubernetes.
    pub version: Version,
    /// Serve policies as beta too, where they are more than that already.
    pub beta: bool,
}

impl Options {
    /// The Kubernetes that was chosen, which logs little and has its directory where it always is.
    ///
    /// # Errors
    /// None was chosen that is known.
    pub fn usual(sync: Duration) -> Result<Self> {
        Ok(Self { sync, verbosity: 2, kubelet: layout::KUBELET, version: Version::chosen()?, beta: false })
    }
}

/// A running cluster of one node. Everything ends when it is dropped.
pub struct Cluster {
    files: Files,
    options: Options,
    kubelet: Mutex<Option<Process>>,
    containerd: Mutex<Option<Process>>,
    // Dropped in this order: who asks ends before who is asked.
    names: Option<Names>,
    others: Vec<Process>,
}

impl Cluster {
    /// Starts one in this process's own namespaces.
    pub async fn start(place: &Place, options: Options) -> Result<Self> {
        layout::prepare(&place.directory)?;
        let files = Files::new(&place.directory)?;
        pki::make(&files)?;
        parts::users(&files)?;
        let archive = files.root().join("busybox.tar");
        images::busybox(&archive)?;
        let (store, containerd) = tokio::try_join!(
            async {
                Ok::<_, anyhow::Error>([
                    parts::etcd(&files).await?,
                    parts::apiserver(&files, &options).await?,
                ])
            },
            async {
                let containerd = parts::containerd(&files).await?;
                images::load(&archive)?;
                Ok(containerd)
            },
        )?;
        let mut others = Vec::from(store);
        others.extend(parts::controllers(&files, &options)?);
        let kubelet = parts::kubelet(&files, &options).await?;
        let dns = parts::dns(&files).await?;
        let names = Names::keep(files.etc("hosts"), files.etc("admin.kubeconfig"), dns)?;
        let cluster = Self {
            files,
            options,
            kubelet: Mutex::new(Some(kubelet)),
            containerd: Mutex::new(Some(containerd)),
            names: Some(names),
            others,
        };
        cluster.node_ready().await?;
        Ok(cluster)
    }

    /// An administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.files.etc("admin.kubeconfig")
    }

    /// Which Kubernetes it is.
    pub fn version(&self) -> Version {
        self.options.version
    }

    /// The run's own files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// `kubectl` with these arguments, which has to succeed: what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(crate::tools::tool("kubectl")?)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(arguments)
            .output()?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    async fn node_ready(&self) -> Result<()> {
        let mut kubelet = self.kubelet.lock().await;
        let kubelet = kubelet.as_mut().context("kubelet runs")?;
        let ready = async || {
            let path = r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#;
            let account = self.kubectl(&["get", "serviceaccount", "default"]).is_ok();
            account && self.kubectl(&["get", "nodes", "-o", path]).is_ok_and(|answer| answer == "True")
        };
        kubelet.wait_until(Duration::from_secs(60), "a ready node", ready).await
    }

    /// SIGKILL to kubelet, and another one in its place.
    pub async fn restart_kubelet(&self) -> Result<()> {
        self.stop_kubelet().await?;
        self.start_kubelet().await
    }

    /// SIGKILL to kubelet.
    pub async fn stop_kubelet(&self) -> Result<()> {
        self.kubelet.lock().await.take().map_or(Ok(()), Process::kill)
    }

    /// Starts kubelet where it does not run.
    pub async fn start_kubelet(&self) -> Result<()> {
        let mut kubelet = self.kubelet.lock().await;
        if kubelet.is_none() {
            *kubelet = Some(parts::kubelet(&self.files, &self.options).await?);
        }
        Ok(())
    }

    /// What a machine's sudden end and new start leave of the node: disks, and nothing else. No process, no mount, no
    /// file in memory. The control plane is another machine's, and lives on.
    pub async fn reboot(&self) -> Result<()> {
        self.stop_kubelet().await?;
        if let Some(containerd) = self.containerd.lock().await.take() {
            containerd.kill()?;
        }
        kill_containers()?;
        kill_shims()?;
        cgroups::remove(self.files.root());
        for directory in [self.options.kubelet, "/run/containerd", "/run/netns"] {
            for mount in countersign_tests::mount::beneath(Path::new(directory))? {
                rustix::mount::unmount(&mount.point, rustix::mount::UnmountFlags::DETACH)
                    .with_context(|| mount.point.display().to_string())?;
            }
            if directory != self.options.kubelet && Path::new(directory).exists() {
                fs::remove_dir_all(directory)?;
            }
        }
        *self.containerd.lock().await = Some(parts::containerd(&self.files).await?);
        self.start_kubelet().await
    }

    /// The last errors and warnings in a log; klog's lines begin with their severity.
    fn complaints(&self, part: &str, lines: usize) -> String {
        let text = fs::read(self.files.log(part)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let bad = |line: &&str| line.starts_with(['E', 'W', 'F']) || line.contains("level=error");
        let mut last: Vec<&str> = text.lines().rev().filter(bad).take(lines).collect();
        last.reverse();
        last.join("\n")
    }

    /// Ends of all logs that say why something may have failed.
    pub fn tails(&self, lines: usize) -> String {
        ["kubelet", "containerd", "kube-apiserver", "kube-controller-manager", "dnsmasq"]
            .map(|part| format!("--- {part}\n{}\n", self.complaints(part, lines)))
            .concat()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.names.take());
        drop(self.kubelet.get_mut().take());
        while let Some(process) = self.others.pop() {
            drop(process);
        }
    }
}

/// SIGKILL to everything that runs in a container: whatever this process namespace has of them is ours.
fn kill_containers() -> Result<()> {
    for_each_process(|pid| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.contains("/kubepods/")
    })
}

fn kill_shims() -> Result<()> {
    for_each_process(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("containerd-shim")
    })
}

/// SIGKILL to all processes for which `chosen` holds, until none is left.
fn for_each_process(chosen: impl Fn(i32) -> bool) -> Result<()> {
    for _ in 0..500 {
        let mut left = false;
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            // A process that has ended and was not waited for yet has no group any more.
            if pid > 1 && chosen(pid) && !is_zombie(pid) {
                left = true;
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    // It may be gone by now.
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
                }
            }
        }
        if !left {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("processes that do not end")
}

fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| text.contains(") Z "))
}
