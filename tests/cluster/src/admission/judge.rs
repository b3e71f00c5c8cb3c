//! Whether the API server did with a pod what the table says.

#![expect(clippy::indexing_slicing, reason = "a JSON value answers null for what is not there")]

use anyhow::{Context, Result, ensure};
use kube::Client;
use serde_json::{Value, json};

use super::post::try_create;
use super::table::{Given, Pod, Refused};

/// The volume that injection gives.
const VOLUME: &str = "countersign";
/// A namespace in which nothing is given.
pub const LEFT_OUT: &str = "left-out";

/// Where pods of a namespace are made.
pub fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// Sees that a pod is given what the table says, and nothing else: the pod as it would be kept.
pub async fn given(client: &Client, case: &Given) -> Result<Value> {
    let object = case.pod.object();
    let answer = try_create(client, &pods(&case.pod.namespace), &object).await?;
    let warned = answer.warnings.iter().any(|warning| match &case.warned {
        Some(expected) => warning.contains(expected),
        None => warning.contains(VOLUME),
    });
    ensure!(warned == case.warned.is_some(), "warnings: {:?}", answer.warnings);
    let pod = answer.object()?;

    let expected = case.attributes().map(|attributes| {
        json!({"name": VOLUME, "csi": {
            "driver": "csi.countersign.dev", "readOnly": true, "volumeAttributes": attributes}})
    });
    let (others, volumes) = parted(&pod["spec"]["volumes"]);
    ensure!(volumes == Vec::from_iter(expected.clone()), "the volume is {volumes:?}");
    let there = object["spec"]["volumes"].to_string().contains("\"name\":\"countersign\"");
    if let (Some(expected), false) = (expected, there) {
        let last = pod["spec"]["volumes"].as_array().and_then(|volumes| volumes.last());
        ensure!(last == Some(&expected), "it is not the last volume: {others:?} are");
    }
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array().into_iter().flatten() {
            let name = container["name"].as_str().context("a name")?;
            let (_, mounts) = parted(&container["volumeMounts"]);
            let expected = case.mounts.get(name);
            let expected = expected.map(|path| json!({"name": VOLUME, "mountPath": path, "readOnly": true}));
            ensure!(mounts == Vec::from_iter(expected), "container {name} mounts {mounts:?}");
        }
    }

    let untouched = Pod { namespace: LEFT_OUT.to_owned(), ..case.pod.clone() };
    let untouched = try_create(client, &pods(LEFT_OUT), &untouched.object()).await?.object()?;
    let (with, without) = (bare(pod.clone()), bare(untouched));
    ensure!(with == without, "more was changed:\n{with:#}\nwithout injection:\n{without:#}");
    Ok(comparable(pod))
}

/// Sees that a pod is refused as the table says, and everything that would make such pods.
pub async fn refused(client: &Client, case: &Refused) -> Result<()> {
    let judge = |what: &str, refusal: Result<String>| {
        let refusal = refusal.with_context(|| what.to_owned())?;
        ensure!(refusal.contains(&case.refused), "{what}: {refusal}");
        let leaked = case.not.as_ref().is_some_and(|not| refusal.contains(not));
        ensure!(!leaked, "{what}: repeats what it should not: {refusal}");
        Ok(())
    };
    let namespace = &case.pod.namespace;
    judge("pods", try_create(client, &pods(namespace), &case.pod.object()).await?.refusal())?;
    for (group, plural, object) in case.pod.workloads() {
        let answer =
            try_create(client, &format!("/apis/{group}/namespaces/{namespace}/{plural}"), &object).await?;
        if case.pods_only {
            answer.object().with_context(|| plural.to_owned())?;
        } else {
            judge(plural, answer.refusal())?;
        }
    }
    Ok(())
}

/// Entries of a list that are not ours, and those that are.
fn parted(list: &Value) -> (Vec<Value>, Vec<Value>) {
    list.as_array().into_iter().flatten().cloned().partition(|entry| entry["name"] != VOLUME)
}

/// A pod without what is different each time.
fn comparable(mut pod: Value) -> Value {
    for field in ["uid", "creationTimestamp", "namespace", "managedFields", "generation"] {
        if let Some(metadata) = pod["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    nameless(&mut pod);
    pod
}

/// A pod without what is different each time, and without anything of ours.
fn bare(pod: Value) -> Value {
    let mut pod = comparable(pod);
    remove(&mut pod["spec"], "volumes");
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            remove(container, "volumeMounts");
        }
    }
    pod
}

fn remove(owner: &mut Value, list: &str) {
    let (others, _) = parted(&owner[list]);
    if let Some(owner) = owner.as_object_mut() {
        if others.is_empty() {
            owner.remove(list);
        } else {
            owner.insert(list.to_owned(), Value::Array(others));
        }
    }
}

/// The volume with the service account's token has a name made up anew for each pod.
fn nameless(value: &mut Value) {
    const MADE_UP: &str = "kube-api-access-";
    match value {
        Value::String(text) if text.starts_with(MADE_UP) => MADE_UP.clone_into(text),
        Value::Array(entries) => entries.iter_mut().for_each(nameless),
        Value::Object(entries) => entries.values_mut().for_each(nameless),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
