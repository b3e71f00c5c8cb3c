//! The object itself. Every write names the version it was made from.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::Arc;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::{Api, ApiError, ConfigMap, Look, ObjectName, Patch, follow};

/// Keys to write, and to remove.
pub(super) type Changes = BTreeMap<String, Option<String>>;

/// The one `ConfigMap` that all replicas write.
pub(super) struct Object {
    api: Arc<Api>,
    name: ObjectName,
}

impl Object {
    pub(super) fn new(api: Arc<Api>, name: ObjectName) -> Self {
        Self { api, name }
    }

    /// Reports what becomes of it, until `shutdown`.
    pub(super) async fn follow(&self, shutdown: &CancellationToken, report: impl FnMut(Look<ConfigMap>)) {
        follow(&self.api, &self.name, shutdown, report).await;
    }

    pub(super) async fn get(&self) -> Result<ConfigMap, ApiError> {
        self.api.get(&self.name.path()).await
    }

    /// Changes what was seen, or makes it where nothing was; a conflict where it is not as it was seen any more.
    pub(super) async fn write(
        &self,
        seen: Option<&ConfigMap>,
        changes: &Changes,
    ) -> Result<ConfigMap, ApiError> {
        match seen {
            Some(map) => self.patch(map, changes).await,
            None => self.create(changes).await,
        }
    }

    async fn patch(&self, map: &ConfigMap, changes: &Changes) -> Result<ConfigMap, ApiError> {
        let patch = json!({
            "metadata": { "resourceVersion": map.metadata.resource_version },
            "data": changes,
        });
        self.api.patch(&self.name.path(), Patch::Merge, &patch).await
    }

    async fn create(&self, changes: &Changes) -> Result<ConfigMap, ApiError> {
        let data: BTreeMap<_, _> =
            changes.iter().filter_map(|(key, text)| Some((key, text.as_ref()?))).collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.name.name(),
                "namespace": self.name.namespace(),
                "labels": { "app.kubernetes.io/part-of": "countersign" },
            },
            "data": data,
        });
        self.api.create(&self.name.collection(), &object, None).await
    }
}

impl Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}
