//! The mutating webhook for clusters that have no `MutatingAdmissionPolicy`: the same change, pod for pod.
//!
//! It adds the volume `countersign` with all annotations under our domains as its attributes, and its mount to the
//! chosen containers. It refuses nothing: what is wrong with a pod is left as it is, and the validating policy, which
//! every supported cluster has, says why. Which pods it is asked about is the configuration's business.

pub(crate) mod configuration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The driver of the volume.
const DRIVER: &str = "csi.countersign.dev";
/// The volume's name.
const VOLUME: &str = "countersign";
/// Annotations under our own domain, and under domains below it.
const DOMAIN: &str = "countersign.dev/";
const BELOW: &str = ".countersign.dev/";
/// Asks for injection.
const INJECT: &str = "countersign.dev/inject";
/// Where the volume is mounted, and where if nothing is said.
const PATH: &str = "countersign.dev/path";
const DEFAULT_PATH: &str = "/var/run/secrets/countersign";
/// Names of the containers that get it, with commas between them; all without it.
const CONTAINERS: &str = "countersign.dev/containers";

/// `AdmissionReview` (admission.k8s.io/v1), as it is asked.
#[derive(Deserialize)]
struct Review {
    request: Option<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    uid: String,
    #[serde(default)]
    object: Value,
}

/// Answers an `AdmissionReview`; nothing if this is none.
pub(crate) fn answer(review: &[u8]) -> Option<Value> {
    let review: Review = serde_json::from_slice(review).ok()?;
    let asked = review.request?;
    let steps = patch(&asked.object);
    let response = if steps.is_empty() {
        json!({ "uid": asked.uid, "allowed": true })
    } else {
        let patch = STANDARD.encode(Value::Array(steps).to_string());
        json!({ "uid": asked.uid, "allowed": true, "patchType": "JSONPatch", "patch": patch })
    };
    Some(json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }))
}

/// The change of one pod (RFC 6902); none where there is nothing to add.
fn patch(pod: &Value) -> Vec<Value> {
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    let Some(annotations) = annotations else { return Vec::new() };
    if annotation(annotations, INJECT) != Some("true") {
        return Vec::new();
    }
    let path = annotation(annotations, PATH).unwrap_or(DEFAULT_PATH);
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
    let ours = |volume: &&Value| text(volume, "/name") == Some(VOLUME);
    let held = volumes.and_then(|volumes| volumes.iter().find(ours));
    let foreign = held.is_some_and(|volume| text(volume, "/csi/driver") != Some(DRIVER));
    if !sound(path) || foreign {
        return Vec::new();
    }
    let mut steps = Vec::new();
    if held.is_none() {
        let attributes: Map<String, Value> = annotations
            .iter()
            .filter(|(key, _)| key.starts_with(DOMAIN) || key.contains(BELOW))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let volume = json!({
            "name": VOLUME,
            "csi": { "driver": DRIVER, "readOnly": true, "volumeAttributes": attributes },
        });
        steps.push(appended("/spec/volumes", volumes.is_some(), &volume));
    }
    let named = annotation(annotations, CONTAINERS).map(|names| names.split(',').map(str::trim).collect());
    for list in ["containers", "initContainers"] {
        mounts(&mut steps, pod, list, path, named.as_ref());
    }
    steps
}

/// Adds the mount to the chosen containers of one list that have nothing at `path` yet.
fn mounts(steps: &mut Vec<Value>, pod: &Value, list: &str, path: &str, named: Option<&Vec<&str>>) {
    let containers = pod.get("spec").and_then(|spec| spec.get(list)).and_then(Value::as_array);
    for (at, container) in containers.into_iter().flatten().enumerate() {
        let name = text(container, "/name").unwrap_or_default();
        let mounted = container.get("volumeMounts").and_then(Value::as_array);
        let there = |mount: &Value| {
            let place = text(mount, "/mountPath").unwrap_or_default();
            place == path || place.strip_suffix('/') == Some(path)
        };
        let chosen = named.is_none_or(|named| named.contains(&name));
        if chosen && !mounted.is_some_and(|mounts| mounts.iter().any(there)) {
            let mount = json!({ "name": VOLUME, "mountPath": path, "readOnly": true });
            steps.push(appended(&format!("/spec/{list}/{at}/volumeMounts"), mounted.is_some(), &mount));
        }
    }
}

/// The step that puts `item` behind the others of a list, or makes the list.
fn appended(list: &str, exists: bool, item: &Value) -> Value {
    if exists {
        json!({ "op": "add", "path": format!("{list}/-"), "value": item })
    } else {
        json!({ "op": "add", "path": list, "value": [item] })
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

fn annotation<'a>(annotations: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    annotations.get(key).and_then(Value::as_str)
}

/// An absolute path without a slash at its end, whose every segment is a name.
fn sound(path: &str) -> bool {
    let segment = |segment: &str| {
        let odd = |c: char| c == ':' || c.is_ascii_control();
        !segment.is_empty() && segment != "." && segment != ".." && !segment.contains(odd)
    };
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing::patched;

    fn pod(annotations: &Value, spec: &Value) -> Value {
        json!({"metadata": {"name": "p", "annotations": annotations}, "spec": spec})
    }

    /// The pod after the webhook has seen it.
    fn injected(pod: &Value) -> Value {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u1", "operation": "CREATE", "object": pod, "unknown": 1}});
        let answer = answer(review.to_string().as_bytes()).unwrap();
        let response = &answer["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u1"), &json!(true)));
        let mut pod = pod.clone();
        if let Some(text) = response["patch"].as_str() {
            assert_eq!(response["patchType"], "JSONPatch");
            let steps = serde_json::from_slice(&STANDARD.decode(text).unwrap()).unwrap();
            assert!(patched(&mut pod, &steps), "{steps}");
        }
        pod
    }

    #[test]
    fn every_container_gets_the_volume_behind_what_it_has() {
        let annotations = json!({
            "countersign.dev/inject": "true",
            "template.countersign.dev/app.env": "A=\"1\"\nB={{ x }}\n",
            "notcountersign.dev/x": "somebody else's",
            "plain": "countersign.dev/",
        });
        let given = pod(
            &annotations,
            &json!({
                "volumes": [{"name": "zz", "emptyDir": {}}],
                "initContainers": [{"name": "stays", "restartPolicy": "Always"}],
                "containers": [
                    {"name": "app", "volumeMounts": [{"name": "zz", "mountPath": "/zz"}]},
                    {"name": "worker"},
                ],
            }),
        );
        let mount =
            json!({"name": "countersign", "mountPath": "/var/run/secrets/countersign", "readOnly": true});
        let expected = pod(
            &annotations,
            &json!({
                "volumes": [
                    {"name": "zz", "emptyDir": {}},
                    {"name": "countersign", "csi": {
                        "driver": "csi.countersign.dev",
                        "readOnly": true,
                        "volumeAttributes": {
                            "countersign.dev/inject": "true",
                            "template.countersign.dev/app.env": "A=\"1\"\nB={{ x }}\n",
                        },
                    }},
                ],
                "initContainers": [{"name": "stays", "restartPolicy": "Always", "volumeMounts": [mount]}],
                "containers": [
                    {"name": "app", "volumeMounts": [{"name": "zz", "mountPath": "/zz"}, mount]},
                    {"name": "worker", "volumeMounts": [mount]},
                ],
            }),
        );
        let after = injected(&given);
        assert_eq!(after, expected);
        assert_eq!(injected(&after), after, "asked again, there is nothing to add");
        // Another webhook adds a container.
        let mut more = after.clone();
        more["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "mesh"}));
        assert_eq!(injected(&more)["spec"]["containers"][2]["volumeMounts"], json!([mount]));
    }

    #[test]
    fn chosen_containers_and_places_in_use() {
        let given = pod(
            &json!({
                "countersign.dev/inject": "true",
                "countersign.dev/path": "/etc/app",
                "countersign.dev/containers": "worker , migrate",
            }),
            &json!({
                "initContainers": [{"name": "migrate", "volumeMounts": [{"name": "x", "mountPath": "/etc/app/"}]}],
                "containers": [{"name": "app"}, {"name": "worker"}],
            }),
        );
        let after = injected(&given);
        assert_eq!(after["spec"]["containers"][0].get("volumeMounts"), None);
        assert_eq!(after["spec"]["containers"][1]["volumeMounts"][0]["mountPath"], "/etc/app");
        assert_eq!(after["spec"]["initContainers"], given["spec"]["initContainers"]);
    }

    #[test]
    fn what_is_wrong_is_left_alone() {
        let spec = json!({"containers": [{"name": "app"}]});
        let inject =
            |path: &str| pod(&json!({"countersign.dev/inject": "true", "countersign.dev/path": path}), &spec);
        for path in ["", "/", "a", "/a/", "/a//b", "/a/../b", "/a/.", "/a:b", "/a\nb"] {
            assert_eq!(injected(&inject(path)), inject(path), "{path:?}");
        }
        assert_ne!(injected(&inject("/a/..b/c.d")), inject("/a/..b/c.d"));
        for annotations in [json!(null), json!({}), json!({"countersign.dev/inject": "false"})] {
            let given = pod(&annotations, &spec);
            assert_eq!(injected(&given), given);
        }
        let foreign = pod(
            &json!({"countersign.dev/inject": "true"}),
            &json!({"volumes": [{"name": "countersign", "emptyDir": {}}], "containers": [{"name": "app"}]}),
        );
        assert_eq!(injected(&foreign), foreign);
    }

    #[test]
    fn what_is_no_review_has_no_answer() {
        for text in ["", "{}", "[]", "{\"request\":{}}", "{\"request\":null}"] {
            assert!(answer(text.as_bytes()).is_none(), "{text}");
        }
        let strange = json!({"request": {"uid": "u", "object": {"metadata": [], "spec": 7}}});
        let answered = answer(strange.to_string().as_bytes()).unwrap();
        assert_eq!(answered["response"], json!({"uid": "u", "allowed": true}));
    }
}
