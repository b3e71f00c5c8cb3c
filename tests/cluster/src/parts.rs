//! The processes a cluster consists of: how each is started, and when it is ready.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_tests::http;
use countersign_tests::processes::Process;
use serde_json::json;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;

use crate::cgroups;
use crate::cluster::Options;
use crate::layout::{
    API_ADDRESS, CONTAINERD, CONTAINERD_SOCKET, DNS_ADDRESS, Files, NODE, NODE_ADDRESS, PODS, SERVICES,
};
use crate::tools::{CNI, installed, tool};

/// How long any of them may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Who may speak to the API server, by the bearer token of each.
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("node", "system:node:node-1", "system:nodes"),
    ("controllers", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
];
/// What is written of each request. Tokens travel in these two by design, and their bodies are what Kubernetes itself
/// advises against writing.
const AUDIT: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  resources:
  - {group: authentication.k8s.io, resources: [tokenreviews]}
  - {group: '', resources: [serviceaccounts/token]}
- level: RequestResponse
";

fn start(files: &Files, name: &str, program: &Path, arguments: &[String]) -> Result<Process> {
    let mut command = Command::new(program);
    command.args(arguments);
    Process::start(name, command, &files.log(name))
}

/// Feature gates, as an argument that every part takes.
fn gates(options: &Options) -> Option<String> {
    let gates = options.version.gates();
    (!gates.is_empty()).then(|| format!("--feature-gates={}", gates.join(",")))
}

fn list(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}

/// Starts etcd.
pub async fn etcd(files: &Files) -> Result<Process> {
    let arguments = list(&[
        "--data-dir=/var/lib/etcd/data",
        "--unsafe-no-fsync",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
    ]);
    let mut process = start(files, "etcd", &installed("etcd")?, &arguments)?;
    let address = ([127, 0, 0, 1], 2379).into();
    process.wait_until(LIMIT, "healthy", async || http::get_ok(address, "/health").await.is_ok()).await?;
    Ok(process)
}

/// Writes who may speak to the API server, and a kubeconfig for each.
pub fn users(files: &Files) -> Result<()> {
    let mut table = String::new();
    for (token, name, group) in USERS {
        writeln!(table, "{token}-token,{name},{name},\"{group}\"")?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{API_ADDRESS}"), "certificate-authority": files.pki("ca.crt")}}],
            "users": [{"name": "u", "user": {"token": format!("{token}-token")}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        });
        // JSON is YAML.
        files.write(&format!("{token}.kubeconfig"), &config.to_string())?;
    }
    files.write("tokens.csv", &table)?;
    Ok(())
}

/// Starts the API server.
pub async fn apiserver(files: &Files, options: &Options) -> Result<Process> {
    let file = |path: std::path::PathBuf| path.display().to_string();
    let policy = file(files.write("audit.yaml", AUDIT)?);
    let mut arguments = list(&[
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        "--secure-port=443",
        "--endpoint-reconciler-type=none",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--api-audiences=https://kubernetes.default.svc",
        // A webhook's Service is reached at its pods: nobody translates cluster addresses here.
        "--enable-aggregator-routing=true",
        "--kubelet-preferred-address-types=InternalIP",
        "--audit-log-maxsize=0",
    ]);
    arguments.extend([
        format!("--advertise-address={NODE_ADDRESS}"),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--service-account-key-file={}", file(files.pki("service-accounts.pub"))),
        format!("--service-account-signing-key-file={}", file(files.pki("service-accounts.key"))),
        format!("--token-auth-file={}", file(files.etc("tokens.csv"))),
        format!("--tls-cert-file={}", file(files.pki("apiserver.crt"))),
        format!("--tls-private-key-file={}", file(files.pki("apiserver.key"))),
        format!("--client-ca-file={}", file(files.pki("ca.crt"))),
        format!("--kubelet-client-certificate={}", file(files.pki("kubelet-client.crt"))),
        format!("--kubelet-client-key={}", file(files.pki("kubelet-client.key"))),
        format!("--kubelet-certificate-authority={}", file(files.pki("ca.crt"))),
        format!("--audit-policy-file={policy}"),
        format!("--audit-log-path={}", file(files.log("audit"))),
        format!("-v={}", options.verbosity),
    ]);
    arguments.extend(gates(options));
    arguments.extend(options.version.switches(options.beta).map(str::to_owned));
    let mut process = start(files, "kube-apiserver", &tool("kube-apiserver")?, &arguments)?;
    let kubectl = tool("kubectl")?;
    let config = files.etc("admin.kubeconfig");
    process
        .wait_until(LIMIT, "ready", async || {
            // The first connection in plain TCP: kubectl takes its time to find out that nobody listens.
            if TcpStream::connect((API_ADDRESS, 443)).await.is_err() {
                return false;
            }
            let mut ready = tokio::process::Command::new(&kubectl);
            ready.arg("--kubeconfig").arg(&config).args(["get", "--raw=/readyz"]);
            ready.output().await.is_ok_and(|output| output.status.success())
        })
        .await?;
    Ok(process)
}

/// Starts the controllers and the scheduler.
pub fn controllers(files: &Files, options: &Options) -> Result<[Process; 2]> {
    let config = |user: &str| format!("--kubeconfig={}", files.etc(&format!("{user}.kubeconfig")).display());
    let controllers = [
        config("controllers"),
        format!("--service-account-private-key-file={}", files.pki("service-accounts.key").display()),
        format!("--root-ca-file={}", files.pki("ca.crt").display()),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--controllers=*,-nodeipam".to_owned(),
        format!("-v={}", options.verbosity),
    ];
    let scheduler =
        [config("scheduler"), "--leader-elect=false".to_owned(), format!("-v={}", options.verbosity)];
    Ok([
        start(files, "kube-controller-manager", &tool("kube-controller-manager")?, &controllers)?,
        start(files, "kube-scheduler", &tool("kube-scheduler")?, &scheduler)?,
    ])
}

/// Starts containerd, with runc and a pod network of point-to-point links.
pub async fn containerd(files: &Files) -> Result<Process> {
    // Each pod hangs on a link of its own, and all it says passes the node: what a bridge would do needs its packets
    // shown to the packet filter, which is a setting of the whole machine.
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }],
    });
    files.write("cni/10-pods.conflist", &network.to_string())?;
    let config = format!(
        r#"version = 3
root = "{CONTAINERD}"
state = "/run/containerd"
[grpc]
address = "{CONTAINERD_SOCKET}"
[debug]
level = "debug"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "localhost/busybox:1"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{CNI}"]
conf_dir = "{}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{}"
SystemdCgroup = false
"#,
        files.etc("cni").display(),
        tool("runc")?.display(),
    );
    let config = files.write("containerd.toml", &config)?;
    let program = tool("containerd")?;
    // Containers inherit it, and a shell cannot trap a signal that whoever ran the suite ignored, as nohup does.
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP").arg(&program);
    // The shim lies beside it.
    let beside = program.parent().context("a program lies in a directory")?;
    let path = std::env::var("PATH").unwrap_or_default();
    command.arg("--config").arg(config).env("PATH", format!("{}:{path}", beside.display()));
    let mut process = Process::start("containerd", command, &files.log("containerd"))?;
    process
        .wait_until(LIMIT, "listening", async || UnixStream::connect(CONTAINERD_SOCKET).await.is_ok())
        .await?;
    Ok(process)
}

/// Starts kubelet.
pub async fn kubelet(files: &Files, options: &Options) -> Result<Process> {
    cgroups::create(files.root())?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "cgroupDriver": "cgroupfs",
        // A pod's processes are known by the name of its control group.
        "cgroupsPerQOS": true,
        "cgroupRoot": format!("/{}", cgroups::name(files.root())?),
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "localStorageCapacityIsolation": false,
        // The machine's disk and memory are not the cluster's to worry about.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0.1%", "imagefs.available": "0.1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 400,
        "syncFrequency": format!("{}s", options.sync.as_secs()),
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "tlsCertFile": files.pki("kubelet.crt"),
        "tlsPrivateKeyFile": files.pki("kubelet.key"),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": files.pki("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
    });
    let config = files.write("kubelet.yaml", &config.to_string())?;
    let mut arguments = vec![
        format!("--config={}", config.display()),
        format!("--kubeconfig={}", files.etc("node.kubeconfig").display()),
        format!("--root-dir={}", options.kubelet),
        format!("--hostname-override={NODE}"),
        format!("--node-ip={NODE_ADDRESS}"),
        format!("-v={}", options.verbosity),
    ];
    arguments.extend(gates(options));
    let address = ([127, 0, 0, 1], 10248).into();
    let mut starts = 1;
    loop {
        let mut process = start(files, "kubelet", &tool("kubelet")?, &arguments)?;
        let healthy = async || http::get_ok(address, "/healthz").await.is_ok();
        match process.wait_until(LIMIT, "healthy", healthy).await {
            Ok(()) => return Ok(process),
            // It ends where containerd listens and is not done yet, and on any other machine systemd starts it again.
            Err(_) if starts < 10 && !process.is_running() => {
                starts += 1;
                sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Starts the name server. What it says is in the file `hosts`, read again at SIGHUP.
pub async fn dns(files: &Files) -> Result<Process> {
    let hosts = files.write("hosts", "")?;
    fs::create_dir_all("/run/dnsmasq")?;
    let arguments = [
        "--keep-in-foreground".to_owned(),
        "--conf-file=/dev/null".to_owned(),
        "--pid-file=".to_owned(),
        "--user=root".to_owned(),
        "--no-resolv".to_owned(),
        "--no-hosts".to_owned(),
        "--local=/cluster.local/".to_owned(),
        "--bind-interfaces".to_owned(),
        "--log-facility=-".to_owned(),
        format!("--listen-address={DNS_ADDRESS}"),
        format!("--addn-hosts={}", hosts.display()),
    ];
    let mut process = start(files, "dnsmasq", &installed("dnsmasq")?, &arguments)?;
    process
        .wait_until(LIMIT, "listening", async || TcpStream::connect((DNS_ADDRESS, 53)).await.is_ok())
        .await?;
    Ok(process)
}
