//! One event as it comes: a `CloudEvent` as JSON (Vault's concepts, "Event notifications"), of which the path alone
//! matters.

use std::borrow::Cow;

use serde::Deserialize;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    event: Event<'a>,
    #[serde(borrow, default)]
    plugin_info: Plugin<'a>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    /// Whether something was changed, as text.
    #[serde(borrow, default)]
    modified: Cow<'a, str>,
    /// What was called.
    #[serde(borrow, default)]
    path: Cow<'a, str>,
    /// Where the secret is read; not in all of them.
    #[serde(borrow, default)]
    data_path: Cow<'a, str>,
}

#[derive(Default, Deserialize)]
struct Plugin<'a> {
    #[serde(borrow, default)]
    mount_path: Cow<'a, str>,
}

/// The path of the secret that the event is about; none if nothing has changed, or it is no event.
pub(super) fn changed(text: &str) -> Option<String> {
    let Envelope { data } = serde_json::from_str(text).ok()?;
    let Metadata { modified, path, data_path } = data.event.metadata;
    if modified != "true" {
        return None;
    }
    if !data_path.is_empty() {
        return Some(data_path.into_owned());
    }
    // Deletions name the call that did it: <mount>/delete/<path>.
    let mount = data.plugin_info.mount_path.trim_end_matches('/');
    let below = path.strip_prefix(mount).and_then(|below| below.strip_prefix('/'));
    let moved = below.and_then(|below| below.split_once('/')).and_then(|(call, secret)| {
        let removes = matches!(call, "delete" | "undelete" | "destroy" | "metadata");
        removes.then(|| format!("{mount}/data/{secret}"))
    });
    let path = moved.unwrap_or_else(|| path.into_owned());
    (!path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, metadata: &serde_json::Value) -> String {
        json!({
            "id": "a3be9fb1", "source": "vault://node", "specversion": "1.0", "type": "*",
            "data": {
                "event": { "id": "a3be9fb1", "metadata": metadata },
                "event_type": kind,
                "plugin_info": { "mount_class": "secret", "mount_accessor": "kv_1", "mount_path": "kv/", "plugin": "kv" },
            },
            "datacontentype": "application/cloudevents", "time": "2026-01-01T00:00:00Z",
        })
        .to_string()
    }

    #[test]
    fn the_path_of_what_changed() {
        let write = json!({ "data_path": "kv/data/app", "path": "kv/data/app", "modified": "true", "operation": "data-write" });
        let removal = |call: &str| json!({ "path": format!("kv/{call}/a/b"), "modified": "true" });
        for (text, path) in [
            (event("kv-v2/data-write", &write), Some("kv/data/app")),
            (event("kv-v2/data-delete", &removal("data")), Some("kv/data/a/b")),
            (event("kv-v2/delete", &removal("delete")), Some("kv/data/a/b")),
            (event("kv-v2/undelete", &removal("undelete")), Some("kv/data/a/b")),
            (event("kv-v2/destroy", &removal("destroy")), Some("kv/data/a/b")),
            (event("kv-v2/metadata-delete", &removal("metadata")), Some("kv/data/a/b")),
            (event("kv-v1/delete", &json!({ "path": "kv/app", "modified": "true" })), Some("kv/app")),
            (event("kv-v2/x", &json!({ "path": "kv/data/app", "modified": "false" })), None),
            (event("kv-v2/x", &json!({ "modified": "true" })), None),
            ("{}".to_owned(), None),
            ("not JSON".to_owned(), None),
        ] {
            assert_eq!(changed(&text).as_deref(), path, "{text}");
        }
    }
}
