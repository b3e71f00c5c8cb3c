//! etcd, the API server, the few controllers that pods need to be admitted, the chart, and an issuer for its webhook.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use countersign_cluster::admission::judge::{LEFT_OUT, pods};
use countersign_cluster::admission::post::{Answer, create, delete, patch, send, try_create};
use countersign_cluster::cluster::Options;
use countersign_cluster::layout::{self, API_ADDRESS, Files, KUBELET, NODE_ADDRESS};
use countersign_cluster::namespace::Place;
use countersign_cluster::parts;
use countersign_cluster::pki;
use countersign_cluster::target;
use countersign_cluster::tools::tool;
use countersign_cluster::version::Version;
use countersign_tests::processes::{Binaries, Confinement, Process, tail, workspace};
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// The chart's namespace.
pub(crate) const SYSTEM: &str = "countersign-system";
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Where policies are.
pub(crate) const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

/// An API server with the chart in it.
pub(crate) struct Server {
    files: Files,
    client: Client,
    processes: Vec<Process>,
}

impl Server {
    /// Starts it, with the namespaces that the tables name.
    pub(crate) async fn start(place: &Place, version: Version) -> Result<Self> {
        layout::prepare(&place.directory)?;
        let files = Files::new(&place.directory)?;
        pki::make(&files)?;
        parts::users(&files)?;
        let sync = Duration::from_secs(60);
        let options = Options { sync, verbosity: 2, kubelet: KUBELET, version, beta: true };
        let mut processes = vec![parts::etcd(&files).await?, parts::apiserver(&files, &options).await?];
        processes.push(controllers(&files)?);
        let client = target::client(Some(&files.etc("admin.kubeconfig"))).await?;
        let server = Self { files, client, processes };
        for (name, labels) in [
            ("app", json!({})),
            (LEFT_OUT, json!({"countersign.dev/injection": "disabled"})),
            ("restricted", json!({"pod-security.kubernetes.io/enforce": "restricted"})),
            (SYSTEM, json!({})),
        ] {
            let namespace = json!({"metadata": {"name": name, "labels": labels}});
            create(&server.client, "/api/v1/namespaces", &namespace).await?.object()?;
            let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
            server.until("a service account", async || server.get(&account).await).await?;
        }
        Ok(server)
    }

    /// An administrator's client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What the parts said last.
    pub(crate) fn said(&self) -> String {
        ["kube-apiserver", "issuer"]
            .map(|part| format!("--- {part}\n{}", tail(&self.files.log(part), 20)))
            .join("\n")
    }

    /// An object.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        send(&self.client, Method::GET, path, "application/json", &Value::Null).await?.object()
    }

    /// Asks until the answer is good.
    pub(crate) async fn until<T>(&self, what: &str, good: impl AsyncFn() -> Result<T>) -> Result<T> {
        let end = Instant::now() + LIMIT;
        loop {
            match good().await {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() > end => return Err(error.context(format!("waited for {what}"))),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Installs the chart, or upgrades it, with the real helm; done when the API server goes by it.
    pub(crate) async fn install(&self, mode: &str) -> Result<()> {
        let output = Command::new(tool("helm")?)
            .args(["upgrade", "--install", "countersign", "--namespace", SYSTEM, "--set"])
            .arg(format!("injection.mode={mode},sops.ageKey.secret=age-key"))
            .args(["--set", "stores.vault.type=vault,stores.vault.addresses[0]=https://vault:8200"])
            .args(["--set-string", r"sops.files.payments/db\.yaml=password: x"])
            .arg("--kubeconfig")
            .arg(self.files.etc("admin.kubeconfig"))
            .arg(workspace().join("charts/countersign"))
            .env("HOME", self.files.root())
            .output()?;
        ensure!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
        // Policies take effect some moments after they are written, each by itself.
        self.until("the policies", async || {
            let writable = json!([{"name": "v", "csi": {"driver": "csi.countersign.dev"}}]);
            let refusal = self.pod(&json!({}), &writable).await?.refusal()?;
            ensure!(refusal.contains("countersign-requests"), "{refusal}");
            let answer = self.asking().await?;
            if mode == "policy" {
                return answer.object().map(drop);
            }
            let refusal = answer.refusal()?;
            ensure!(refusal.contains("inject.countersign.dev"), "{refusal}");
            Ok(())
        })
        .await
    }

    /// A pod with one container.
    async fn pod(&self, annotations: &Value, volumes: &Value) -> Result<Answer> {
        let pod = json!({"metadata": {"name": "p", "annotations": annotations}, "spec": {
            "automountServiceAccountToken": false, "volumes": volumes, "containers": [{"name": "app", "image": "a"}]}});
        try_create(&self.client, &pods("app"), &pod).await
    }

    /// A pod that asks for its identity.
    pub(crate) async fn asking(&self) -> Result<Answer> {
        let annotations = json!({"countersign.dev/inject": "true", "svid.countersign.dev/x509": "a,b,c"});
        self.pod(&annotations, &json!([])).await
    }

    /// The API server's own look at the expressions.
    pub(crate) async fn types_are_sound(&self) -> Result<()> {
        for name in ["countersign-requests", "countersign-advice", "countersign-startup-taint"] {
            let path = format!("{ADMISSION}/validatingadmissionpolicies/{name}");
            self.until("a type check", async || {
                let policy = self.get(&path).await?;
                ensure!(
                    policy["status"]["observedGeneration"] == policy["metadata"]["generation"],
                    "not checked"
                );
                let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
                ensure!(warnings.is_null(), "{name}: {warnings:#}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// While nobody serves the webhook, only pods that ask for it wait for it.
    pub(crate) async fn nobody_serves(&self) -> Result<()> {
        let refusal = self.asking().await?.refusal()?;
        ensure!(refusal.contains("failed calling webhook \"inject.countersign.dev\""), "{refusal}");
        self.pod(&json!({}), &json!([])).await?.object()?;
        self.pod(&json!({"countersign.dev/inject": "false"}), &json!([])).await?.object()?;
        Ok(())
    }

    /// Starts an issuer where the webhook's Service leads.
    pub(crate) async fn serve_webhook(&mut self) -> Result<()> {
        let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/countersign-issuer/token");
        let token =
            create(&self.client, &path, &json!({"spec": {"expirationSeconds": 3600}})).await?.object()?;
        let token = token["status"]["token"].as_str().context("a token")?.to_owned();
        let token = self.file_for_all("issuer-token", &token)?;
        let mut command = Confinement::find()?.command(&Binaries::find()?.agent);
        command.args(["issuer", "--trust-domain", "cluster.local", "--inject"]).args([
            format!("--listen={NODE_ADDRESS}:8443"),
            format!("--bundle-configmap={SYSTEM}/countersign-bundle"),
            "--replica-name=one".to_owned(),
            "--webhook-configuration=countersign".to_owned(),
            format!("--webhook-host=countersign-webhook.{SYSTEM}.svc"),
            format!("--kubernetes-url=https://{API_ADDRESS}:443"),
            format!("--kubernetes-ca={}", self.files.pki("ca.crt").display()),
            format!("--kubernetes-token={}", token.display()),
        ]);
        let slice = json!({
            "metadata": {"name": "webhook", "labels": {"kubernetes.io/service-name": "countersign-webhook"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": true}}],
            "ports": [{"name": "webhook", "port": 8443, "protocol": "TCP"}],
        });
        let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{SYSTEM}/endpointslices");
        create(&self.client, &slices, &slice).await?.object()?;
        // Where an API server of 1.31 looks. No controller makes the one of the other here.
        let endpoints = json!({
            "metadata": {"name": "countersign-webhook"},
            "subsets": [{"addresses": [{"ip": NODE_ADDRESS}],
                "ports": [{"name": "webhook", "port": 8443, "protocol": "TCP"}]}],
        });
        let path = format!("/api/v1/namespaces/{SYSTEM}/endpoints");
        create(&self.client, &path, &endpoints).await?.object()?;
        let mut issuer = Process::start("issuer", command, &self.files.log("issuer"))?;
        let served = issuer
            .wait_until(LIMIT, "serving the webhook", async || match self.asking().await {
                Ok(answer) => answer.outcome.is_ok(),
                Err(_) => false,
            })
            .await;
        self.processes.push(issuer);
        served
    }

    /// Another policy, of this API version, adds a container after ours has been asked: the container has its files too.
    pub(crate) async fn added_later(&self, api: &str) -> Result<()> {
        let policy = json!({"metadata": {"name": "zz-sidecar"}, "spec": {
            "failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                "operations": ["CREATE"], "resources": ["pods"]}]},
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'add', path: '/spec/containers/-', value: Object.spec.containers{name: 'late', image: 'a'}}]"}}]}});
        let binding = json!({"metadata": {"name": "zz-sidecar"}, "spec": {"policyName": "zz-sidecar"}});
        let group = format!("/apis/admissionregistration.k8s.io/{api}");
        let (policies, bindings) = (
            format!("{group}/mutatingadmissionpolicies"),
            format!("{group}/mutatingadmissionpolicybindings"),
        );
        create(&self.client, &policies, &policy).await?.object()?;
        create(&self.client, &bindings, &binding).await?.object()?;
        let given = self
            .until("a late container with its mount", async || {
                let pod = self.asking().await?.object()?;
                let containers = pod["spec"]["containers"].as_array().context("containers")?;
                ensure!(containers.len() == 2, "no late container yet");
                let mounts = |container: &Value| container["volumeMounts"].as_array().map_or(0, Vec::len);
                ensure!(containers.iter().all(|container| mounts(container) == 1), "{containers:?}");
                Ok(())
            })
            .await;
        delete(&self.client, &format!("{bindings}/zz-sidecar")).await?.object()?;
        delete(&self.client, &format!("{policies}/zz-sidecar")).await?.object()?;
        self.until("its end", async || {
            let pod = self.asking().await?.object()?;
            ensure!(pod["spec"]["containers"].as_array().map_or(0, Vec::len) == 1, "it is still there");
            Ok(())
        })
        .await?;
        given
    }

    /// Where nothing injects, a pod that asks for it is refused, and not started without its files.
    pub(crate) async fn missing(&self) -> Result<()> {
        delete(&self.client, &format!("{ADMISSION}/mutatingwebhookconfigurations/countersign"))
            .await?
            .object()?;
        self.gives_nothing().await
    }

    /// Waits until nothing injects.
    pub(crate) async fn gives_nothing(&self) -> Result<()> {
        self.until("the refusal", async || {
            let refusal = self.asking().await?.refusal()?;
            ensure!(refusal.contains("the pod was not given its volume"), "{refusal}");
            Ok(())
        })
        .await
    }

    /// The run's own files.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// A token of a pod of this service account, which is made on `node`.
    pub(crate) async fn pod_token(&self, account: &str, node: &str) -> Result<String> {
        let name = format!("{account}-{node}");
        let pod = json!({"metadata": {"name": name}, "spec": {
            "serviceAccountName": account, "automountServiceAccountToken": false, "nodeName": node,
            "containers": [{"name": "a", "image": "a"}]}});
        create(&self.client, &pods(SYSTEM), &pod).await?.object()?;
        let request = json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name}}});
        let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/{account}/token");
        let token = create(&self.client, &path, &request).await?.object()?;
        Ok(token["status"]["token"].as_str().context("a token")?.to_owned())
    }

    /// A client with such a token.
    pub(crate) async fn pod_client(&self, account: &str, node: &str) -> Result<Client> {
        let token = self.pod_token(account, node).await?;
        let text = std::fs::read_to_string(self.files.etc("admin.kubeconfig"))?;
        let path = self.files.write("pod.kubeconfig", &text.replace("admin-token", &token))?;
        target::client(Some(&path)).await
    }

    /// The agent's own process for a node, with what the chart gives it to take the taint away.
    pub(crate) async fn start_agent(&self, node: &str, taint: &str) -> Result<Process> {
        let token = self.file_for_all("agent-token", &self.pod_token("countersign-agent", node).await?)?;
        let config = self.file_for_all("agent.yaml", "stores: {}\n")?;
        let link = self.files.root().join("link");
        std::fs::create_dir_all(&link)?;
        std::fs::set_permissions(&link, PermissionsExt::from_mode(0o777))?;
        let mut command = Confinement::find()?.command(&Binaries::find()?.agent);
        command.args(["run", "--trust-domain=cluster.local", "--issuer-address=127.0.0.1:1"]).args([
            format!("--link-dir={}", link.display()),
            format!("--config={}", config.display()),
            format!("--bundle-configmap={SYSTEM}/countersign-bundle"),
            format!("--agent-token={}", token.display()),
            format!("--kubernetes-url=https://{API_ADDRESS}:443"),
            format!("--kubernetes-ca={}", self.files.pki("ca.crt").display()),
            format!("--kubernetes-token={}", token.display()),
            format!("--node-name={node}"),
            format!("--startup-taint={taint}"),
        ]);
        Process::start("agent", command, &self.files.log("agent"))
    }

    /// A file that other uids may read, in a directory that only we may enter.
    fn file_for_all(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.files.write(name, text)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
        Ok(path)
    }

    /// A change by JSON patch that is kept.
    pub(crate) async fn change(&self, path: &str, operations: &Value) -> Result<Answer> {
        patch(&self.client, path, operations).await
    }
}

/// Service accounts, and the look at policies. No other controller: nodes here are only names.
fn controllers(files: &Files) -> Result<Process> {
    let mut command = Command::new(tool("kube-controller-manager")?);
    let config = files.etc("controllers.kubeconfig");
    if !config.exists() {
        bail!("{} is missing", config.display());
    }
    command.arg("--kubeconfig").arg(config).args([
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        "--controllers=serviceaccount-controller,validatingadmissionpolicy-status-controller",
    ]);
    let key = files.pki("service-accounts.key");
    command.arg(format!("--service-account-private-key-file={}", key.display()));
    Process::start("kube-controller-manager", command, &files.log("kube-controller-manager"))
}
