//! Pods as a user makes them, each case in a namespace of its own.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, ServiceAccount};
use kube::api::{AttachParams, DeleteParams, ListParams, LogParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use crate::secrets::SYSTEM;

/// Where the files are by default.
pub const PATH: &str = "/var/run/secrets/countersign";
/// How long a pod may take to run or to be gone.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Does nothing, until told to end.
pub(crate) const IDLE: [&str; 3] =
    ["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 1000 & wait $!; done"];
/// How often the API server is asked.
const INTERVAL: Duration = Duration::from_millis(150);

/// A namespace.
#[derive(Clone)]
pub struct Space {
    client: Client,
    name: String,
    image: String,
}

impl Space {
    /// Makes one of this name.
    pub async fn new(client: &Client, name: &str, image: &str) -> Result<Self> {
        let namespaces = Api::<Namespace>::all(client.clone());
        let namespace = json!({"metadata": {"name": name}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        let space = Self::there(client, name, image);
        space.account_there("default").await?;
        Ok(space)
    }

    /// One that is there.
    pub fn there(client: &Client, name: &str, image: &str) -> Self {
        Self { client: client.clone(), name: name.to_owned(), image: image.to_owned() }
    }

    /// That of the release.
    pub fn system(client: &Client) -> Self {
        Self::there(client, SYSTEM, "")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Objects of a kind in it.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Makes a service account.
    pub async fn account(&self, name: &str) -> Result<()> {
        let account = json!({"metadata": {"name": name}});
        let accounts = self.api::<ServiceAccount>();
        accounts.create(&PostParams::default(), &serde_json::from_value(account)?).await?;
        Ok(())
    }

    async fn account_there(&self, name: &str) -> Result<()> {
        let accounts = self.api::<ServiceAccount>();
        until(LIMIT, "a service account", async || Ok(accounts.get_opt(name).await?)).await.map(drop)
    }

    /// A pod that does nothing, with these annotations.
    pub fn manifest(&self, name: &str, annotations: &[(&str, &str)]) -> Value {
        let annotations: serde_json::Map<String, Value> =
            annotations.iter().map(|&(key, value)| (key.to_owned(), value.into())).collect();
        json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [idle(&self.image)],
            },
        })
    }

    /// Such a pod without annotations: its author wrote the volume, with these attributes, at `/s`.
    pub fn by_hand(&self, name: &str, attributes: &Value) -> Value {
        json!({
            "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "volumes": [inline(attributes)],
                "containers": [{
                    "name": "main", "image": self.image, "imagePullPolicy": "IfNotPresent", "command": IDLE,
                    "volumeMounts": [{"name": "secrets", "mountPath": "/s", "readOnly": true}],
                }],
            },
        })
    }

    /// Makes a pod.
    pub async fn create(&self, manifest: &Value) -> Result<Pod, kube::Error> {
        let pod = serde_json::from_value(manifest.clone()).map_err(kube::Error::SerdeError)?;
        self.api::<Pod>().create(&PostParams::default(), &pod).await
    }

    /// Makes a pod that asks by annotations, and waits until it runs.
    pub async fn start(&self, name: &str, annotations: &[(&str, &str)]) -> Result<Pod> {
        let mut all = vec![("countersign.dev/inject", "true")];
        all.extend(annotations);
        self.start_from(&self.manifest(name, &all)).await
    }

    /// Makes a pod and waits until it runs.
    pub async fn start_from(&self, manifest: &Value) -> Result<Pod> {
        self.create(manifest).await?;
        self.running(name_of(manifest)?).await
    }

    /// Waits until a pod is ready. What holds it up is in the error.
    pub async fn running(&self, name: &str) -> Result<Pod> {
        let pods = self.api::<Pod>();
        let ready =
            until(LIMIT, "a running pod", async || Ok(pods.get_opt(name).await?.filter(is_ready))).await;
        match ready {
            Ok(pod) => Ok(pod),
            Err(error) => {
                let told = self.events(name).await.unwrap_or_default();
                Err(error.context(format!("pod {}/{name}; its events: {told:#?}", self.name)))
            }
        }
    }

    /// The ready pods with this label.
    pub async fn ready(&self, label: &str) -> Result<Vec<Pod>> {
        let pods = self.api::<Pod>().list(&ListParams::default().labels(label)).await?;
        Ok(pods.items.into_iter().filter(is_ready).collect())
    }

    /// Messages of all events on a pod.
    pub async fn events(&self, name: &str) -> Result<Vec<String>> {
        let of = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = self.api::<Event>().list(&of).await?;
        let text = |event: Event| {
            format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default())
        };
        Ok(events.items.into_iter().map(text).collect())
    }

    /// Waits for an event on a pod whose text has all of these in it.
    pub async fn event(&self, name: &str, parts: &[&str]) -> Result<String> {
        let found = until(LIMIT, "such an event", async || {
            let events = self.events(name).await?;
            Ok(events.into_iter().find(|event| parts.iter().all(|part| event.contains(part))))
        });
        match found.await {
            Ok(event) => Ok(event),
            Err(error) => bail!("{error}: {parts:?} in {:#?}", self.events(name).await?),
        }
    }

    /// Deletes a pod and waits until it is gone.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.api::<Pod>().delete(name, &DeleteParams::default()).await?;
        self.gone(name).await
    }

    /// Waits until there is no such pod.
    pub async fn gone(&self, name: &str) -> Result<()> {
        let pods = self.api::<Pod>();
        let gone = async || Ok(pods.get_opt(name).await?.is_none().then_some(()));
        until(LIMIT, "gone", gone).await.with_context(|| format!("pod {name}"))
    }

    /// Standard output of a command in a pod, which has to succeed.
    pub async fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.exec_in(pod, "main", command).await
    }

    /// The same in a container.
    pub async fn exec_in(&self, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        self.feed(pod, container, command, "").await
    }

    /// The same with something on its standard input.
    pub async fn feed(&self, pod: &str, container: &str, command: &[&str], input: &str) -> Result<String> {
        let how = AttachParams::default().container(container).stderr(true).stdin(!input.is_empty());
        let mut process = self.api::<Pod>().exec(pod, command.iter().copied(), &how).await?;
        if let Some(mut stdin) = process.stdin() {
            stdin.write_all(input.as_bytes()).await?;
            stdin.shutdown().await?;
        }
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let (mut out, mut err) =
            (process.stdout().context("standard output")?, process.stderr().context("standard error")?);
        tokio::try_join!(out.read_to_string(&mut stdout), err.read_to_string(&mut stderr))?;
        let status = process.take_status().context("one status")?.await.context("a status")?;
        ensure!(
            status.status.as_deref() == Some("Success"),
            "{command:?} in {pod}: {} {stderr}",
            status.message.unwrap_or_default()
        );
        Ok(stdout)
    }

    /// The bytes of one of our files in a pod, as text.
    pub async fn file(&self, pod: &str, name: &str) -> Result<String> {
        self.exec(pod, &["cat", &format!("{PATH}/{name}")]).await
    }

    /// Waits until a file in a pod holds this.
    pub async fn file_becomes(&self, pod: &str, name: &str, text: &str) -> Result<()> {
        let path = format!("{PATH}/{name}");
        // One command that waits, not one command for each look.
        let script = format!(r#"while [ "$(cat {path})" != "$0" ]; do sleep 0.1; done"#);
        let command = ["timeout", "150", "sh", "-c", &script, text];
        self.exec(pod, &command)
            .await
            .with_context(|| format!("{name} in {pod} has not become {text:?}"))
            .map(drop)
    }

    /// What a container has logged.
    pub async fn log(&self, pod: &str, container: &str) -> Result<String> {
        let of = LogParams { container: Some(container.to_owned()), ..LogParams::default() };
        Ok(self.api::<Pod>().logs(pod, &of).await?)
    }

    /// For whoever has to find out what went wrong: the events on all pods, and the ends of their logs.
    pub async fn tails(&self, lines: usize) -> String {
        let mut text = String::new();
        for pod in self.api::<Pod>().list(&ListParams::default()).await.into_iter().flatten() {
            let Ok(name) = name(&pod) else { continue };
            let events = self.events(name).await.unwrap_or_default();
            writeln!(text, "--- pod {name}: {events:#?}").ok();
            for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
                let log = self.log(name, &container.name).await.unwrap_or_default();
                let skip = log.lines().count().saturating_sub(lines);
                let end: Vec<_> = log.lines().skip(skip).collect();
                writeln!(text, "--- {name}/{}\n{}", container.name, end.join("\n")).ok();
            }
        }
        text
    }

    /// Removes the namespace and all in it, without waiting.
    pub async fn remove(self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        namespaces.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// A container that does nothing, and gives way when told to. It says so itself: what an image runs by default may end at
/// once, as the shell of the public busybox does.
pub fn idle(image: &str) -> Value {
    json!({"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": IDLE})
}

/// An inline volume of ours with these attributes.
pub fn inline(attributes: &Value) -> Value {
    json!({"name": "secrets", "csi": {"driver": "csi.countersign.dev", "readOnly": true, "volumeAttributes": attributes}})
}

/// Name in a manifest.
pub fn name_of(manifest: &Value) -> Result<&str> {
    manifest.pointer("/metadata/name").and_then(Value::as_str).context("a name")
}

/// Uid of an object.
pub fn uid(pod: &Pod) -> Result<&str> {
    pod.metadata.uid.as_deref().context("a uid")
}

/// Name of an object.
pub fn name(pod: &Pod) -> Result<&str> {
    pod.metadata.name.as_deref().context("a name")
}

/// Whether the pod is ready and not about to go.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// Asks until there is an answer.
pub async fn until<T>(within: Duration, what: &str, ask: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "not {what} within {within:?}");
        sleep(INTERVAL).await;
    }
}
