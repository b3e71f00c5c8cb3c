//! What makes pods, what was there before the chart, and pods that are changed or large.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use countersign_cluster::admission::judge::pods;
use countersign_cluster::admission::post::{create, delete, send, try_create};
use http::Method;
use serde_json::{Value, json};

use crate::Outcomes;
use crate::server::Server;

const OLD: &str = "/apis/apps/v1/namespaces/app/deployments/old";

/// A Deployment that would be refused once the chart is there.
pub(crate) async fn before(server: &Server) -> Result<()> {
    let template = json!({"metadata": {"labels": {"app": "old"}, "annotations": {"countersign.dev/injekt": "true"}},
        "spec": {"containers": [{"name": "app", "image": "a"}]}});
    let old = json!({"metadata": {"name": "old", "finalizers": ["example.com/wait"]},
        "spec": {"selector": {"matchLabels": {"app": "old"}}, "template": template}});
    create(server.client(), "/apis/apps/v1/namespaces/app/deployments", &old).await?.object().map(drop)
}

/// Everything about it and about pods that are there.
pub(crate) async fn cases(server: &Server, outcomes: &mut Outcomes) {
    let mut add = |name: &str, outcome: Result<()>| outcomes.push((name.to_owned(), outcome));
    add("what was there before lives on until its template changes", old(server).await);
    add("an ephemeral container gets nothing by itself, and what it asks for", ephemeral(server).await);
    add("annotations of a pod that is there mean nothing", later(server).await);
    add("what makes good pods is let in, and not changed", workloads(server).await);
}

async fn old(server: &Server) -> Result<()> {
    let change = async |path: &str, operations: Value| server.change(path, &operations).await;
    let image = "/spec/template/spec/containers/0/image";
    change(OLD, json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}])).await?.object()?;
    change(OLD, json!([{"op": "replace", "path": "/spec/replicas", "value": 3}])).await?.object()?;
    let refusal = change(OLD, json!([{"op": "replace", "path": image, "value": "b"}])).await?.refusal()?;
    ensure!(refusal.contains("annotation countersign.dev/injekt: unknown key"), "{refusal}");
    let annotations = "/spec/template/metadata/annotations";
    let mended =
        json!([{"op": "replace", "path": image, "value": "b"}, {"op": "remove", "path": annotations}]);
    change(&format!("{OLD}?dryRun=All"), mended).await?.object()?;
    // Its end must not hang on a policy.
    delete(server.client(), OLD).await?.object()?;
    change(OLD, json!([{"op": "remove", "path": "/metadata/finalizers"}])).await?.object().map(drop)
}

fn pod(name: &str) -> Value {
    let annotations = json!({"countersign.dev/inject": "true", "jwt.countersign.dev/token": "x"});
    json!({"metadata": {"name": name, "annotations": annotations},
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "app", "image": "a"}]}})
}

async fn ephemeral(server: &Server) -> Result<()> {
    create(server.client(), &pods("app"), &pod("debugged")).await?.object()?;
    let path = format!("{}/debugged/ephemeralcontainers?dryRun=All", pods("app"));
    let added = async |container: Value| -> Result<Value> {
        let change = json!({"spec": {"ephemeralContainers": [container]}});
        let kind = "application/strategic-merge-patch+json";
        let pod = send(server.client(), Method::PATCH, &path, kind, &change).await?.object()?;
        let containers = pod["spec"]["ephemeralContainers"].as_array().context("ephemeral containers")?;
        Ok(containers.first().context("one of them")?["volumeMounts"].clone())
    };
    let plain = added(json!({"name": "debug", "image": "a"})).await?;
    ensure!(plain.is_null(), "{plain}");
    let mount = json!([{"name": "countersign", "mountPath": "/secrets", "readOnly": true}]);
    let asked = added(json!({"name": "debug", "image": "a", "volumeMounts": mount})).await?;
    ensure!(asked == mount, "{asked}");
    Ok(())
}

async fn later(server: &Server) -> Result<()> {
    create(server.client(), &pods("app"), &pod("annotated")).await?.object()?;
    let path = format!("{}/annotated?dryRun=All", pods("app"));
    let change =
        json!([{"op": "add", "path": "/metadata/annotations/countersign.dev~1refesh", "value": "1s"}]);
    let pod = server.change(&path, &change).await?.object()?;
    let volume = &pod["spec"]["volumes"][0]["csi"]["volumeAttributes"];
    ensure!(volume["countersign.dev/refesh"].is_null() && !volume.is_null(), "{volume}");
    Ok(())
}

async fn workloads(server: &Server) -> Result<()> {
    let good = countersign_cluster::admission::table::Pod {
        name: "good".to_owned(),
        namespace: "app".to_owned(),
        annotations: BTreeMap::from(
            [("countersign.dev/inject", "true"), ("secret.countersign.dev/a", "sops:a#b")]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
        ),
        spec: json!({"containers": [{"name": "app", "image": "a"}]}),
    };
    for (group, plural, object) in good.workloads() {
        let path = format!("/apis/{group}/namespaces/app/{plural}");
        let made = try_create(server.client(), &path, &object).await?.object().with_context(|| plural)?;
        ensure!(!made.to_string().contains("csi.countersign.dev"), "{plural}: {made:#}");
    }
    Ok(())
}

/// As much as Kubernetes and the agent allow: annotations of 256 KiB, 511 files, a hundred containers.
pub(crate) async fn large(server: &Server) -> Result<()> {
    for (files, bytes, containers, mounts) in [(511, 400, 100, 50), (1, 250_000, 1, 1), (200, 900, 20, 200)] {
        let mut annotations = BTreeMap::from([("countersign.dev/inject".to_owned(), "true".to_owned())]);
        for file in 0..files {
            annotations.insert(
                format!("secret.countersign.dev/file-{file}"),
                format!("sops:a#{}", "x".repeat(bytes)),
            );
        }
        let names: Vec<String> = (0..containers).map(|container| format!("c{container}")).collect();
        annotations.insert("countersign.dev/containers".to_owned(), names.join(","));
        let mounts: Vec<Value> =
            (0..mounts).map(|mount| json!({"name": "own", "mountPath": format!("/m{mount}")})).collect();
        let containers: Vec<Value> =
            names.iter().map(|name| json!({"name": name, "image": "a", "volumeMounts": mounts})).collect();
        let pod = json!({"metadata": {"name": "large", "annotations": annotations}, "spec": {
            "automountServiceAccountToken": false, "containers": containers,
            "volumes": [{"name": "own", "emptyDir": {}}]}});
        let made = try_create(server.client(), &pods("app"), &pod).await?.object()?;
        let given = made["spec"]["volumes"][1]["csi"]["volumeAttributes"].as_object();
        ensure!(given.is_some_and(|given| given.len() == annotations.len()), "it was given {given:?}");
    }
    Ok(())
}
