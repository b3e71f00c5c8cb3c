//! The pods of a Kubernetes manifest, as far as they ask for something of ours.

use std::collections::BTreeMap;

use serde_json::Value;

/// The driver whose volumes are looked for.
const DRIVER: &str = "csi.countersign.dev";
/// The domain of our annotations, and what those of its files end with.
const DOMAIN: &str = "countersign.dev";

/// A pod, or what makes pods.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) service_account: String,
    /// At least one.
    pub(super) asked: Vec<Asked>,
}

/// One volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Which, in words.
    pub(super) volume: String,
    pub(super) attributes: BTreeMap<String, String>,
    /// It is not asked for read-only, and would be refused.
    pub(super) writable: bool,
}

/// All of a text with one document or many.
pub(super) fn pods(text: &str, namespace: &str) -> Result<Vec<Pod>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for document in &documents {
        collect(document, namespace, &mut found);
    }
    Ok(found)
}

fn collect(document: &Value, namespace: &str, found: &mut Vec<Pod>) {
    let items = document.get("items").and_then(Value::as_array);
    if let Some(items) = items {
        for item in items {
            collect(item, namespace, found);
        }
        return;
    }
    let text = |at: &str| document.pointer(at).and_then(Value::as_str);
    // Where each kind keeps its pods: a CronJob's job has a template of its own.
    let template = ["/spec/jobTemplate/spec/template", "/spec/template"]
        .into_iter()
        .find_map(|at| document.pointer(at))
        .unwrap_or(document);
    let spec = template.get("spec").unwrap_or(&Value::Null);
    let account =
        ["serviceAccountName", "serviceAccount"].into_iter().find_map(|key| spec.get(key)?.as_str());
    let asked: Vec<_> = injected(template).into_iter().chain(volumes(spec)).collect();
    if !asked.is_empty() {
        found.push(Pod {
            kind: text("/kind").unwrap_or("Pod").to_owned(),
            namespace: text("/metadata/namespace").unwrap_or(namespace).to_owned(),
            name: text("/metadata/name").unwrap_or("(generated)").to_owned(),
            service_account: account.unwrap_or("default").to_owned(),
            asked,
        });
    }
}

/// What the admission policy makes of annotations.
fn injected(template: &Value) -> Option<Asked> {
    let annotations = template.pointer("/metadata/annotations")?.as_object()?;
    let ours = |key: &str| {
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        domain == DOMAIN || domain.strip_suffix(DOMAIN).is_some_and(|rest| rest.ends_with('.'))
    };
    let attributes: BTreeMap<_, _> = annotations
        .iter()
        .filter(|(key, _)| ours(key))
        .map(|(key, value)| (key.clone(), text(value)))
        .collect();
    (attributes.get("countersign.dev/inject").map(String::as_str) == Some("true")).then(|| Asked {
        volume: "volume by annotations".to_owned(),
        attributes,
        writable: false,
    })
}

fn volumes(spec: &Value) -> Vec<Asked> {
    let volumes = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let ours = volumes.filter(|volume| volume.pointer("/csi/driver").and_then(Value::as_str) == Some(DRIVER));
    ours.map(|volume| {
        let attributes = volume.pointer("/csi/volumeAttributes").and_then(Value::as_object);
        let name = volume.get("name").map(text).unwrap_or_default();
        Asked {
            volume: format!("volume {name}"),
            writable: volume.pointer("/csi/readOnly") != Some(&Value::Bool(true)),
            attributes: attributes
                .into_iter()
                .flatten()
                .map(|(key, value)| (key.clone(), text(value)))
                .collect(),
        }
    })
    .collect()
}

/// What stands there; Kubernetes takes nothing but text.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
