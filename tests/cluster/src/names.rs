//! Names of Services, as a cluster's DNS gives them: written from what the API server knows, into a file of hosts.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_tests::processes::Process;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;

use crate::target::client;

/// How often the API server is asked.
const INTERVAL: Duration = Duration::from_millis(500);

/// The thread that writes them, and the name server that reads them.
pub struct Names {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Names {
    /// Writes `hosts` and tells `server`, until dropped.
    pub fn keep(hosts: PathBuf, kubeconfig: PathBuf, server: Process) -> Result<Self> {
        let (end, ended) = channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("names".into()).spawn(move || {
            let mut known = String::new();
            loop {
                // An API server that is gone for a moment changes no name.
                if let Ok(text) = runtime.block_on(all(&kubeconfig))
                    && text != known
                    && fs::write(&hosts, &text).is_ok()
                    && server.reload().is_ok()
                {
                    known = text;
                }
                match ended.recv_timeout(INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        })?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn all(kubeconfig: &std::path::Path) -> Result<String> {
    let client = client(Some(kubeconfig)).await?;
    let mut lines = BTreeSet::new();
    let name = |service: &str, namespace: &str| format!("{service}.{namespace}.svc.cluster.local");
    for service in Api::<Service>::all(client.clone()).list(&ListParams::default()).await? {
        let (metadata, spec) = (service.metadata, service.spec.context("a spec")?);
        let address = spec.cluster_ip.unwrap_or_default();
        if !address.is_empty() && address != "None" {
            let (service, namespace) =
                (metadata.name.unwrap_or_default(), metadata.namespace.unwrap_or_default());
            lines.insert(format!("{address} {}", name(&service, &namespace)));
        } else if let (Some(service), Some(namespace)) = (metadata.name, metadata.namespace) {
            let slices = Api::<EndpointSlice>::namespaced(client.clone(), &namespace);
            let of = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
            let all = spec.publish_not_ready_addresses.unwrap_or_default();
            for slice in slices.list(&of).await? {
                for endpoint in slice.endpoints.into_iter().flatten() {
                    let ready = endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
                    if ready || all {
                        for address in endpoint.addresses {
                            lines.insert(format!("{address} {}", name(&service, &namespace)));
                        }
                    }
                }
            }
        }
    }
    Ok(lines.into_iter().map(|line| line + "\n").collect())
}
