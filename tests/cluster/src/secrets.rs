//! The embedded store of a cluster: SOPS files in a ConfigMap, and the age key that opens them in a Secret.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_tests::store::SopsStore;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// Namespace of the release.
pub const SYSTEM: &str = "countersign-system";
/// ConfigMap with the files, and Secret with the key.
pub const STORE: &str = "e2e-store";
/// Which paths an identity may read: these of its own namespace. A key of a ConfigMap cannot hold a slash.
pub const ALLOWED: [&str; 4] = ["{ns}.db", "{ns}.live", "{ns}.pair", "{ns}.secret"];

/// Writes the store's files.
#[derive(Clone)]
pub struct Store {
    files: SopsStore,
    key: PathBuf,
    client: Client,
}

impl Store {
    /// Makes the key and puts it into the cluster; the namespace of the release is there.
    pub async fn new(agent: &Path, directory: &Path, client: Client) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let key = directory.join("age.key");
        SopsStore::new(agent, directory, &key)?;
        let store = Self::open(agent, directory, client)?;
        let key = STANDARD.encode(std::fs::read(&store.key)?);
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": STORE}, "data": {"age.key": key}});
        let secrets = Api::<Secret>::namespaced(store.client.clone(), SYSTEM);
        secrets.patch(STORE, &PatchParams::apply("e2e").force(), &Patch::Apply(secret)).await?;
        store.write("e2e.none", &json!({"none": "none"})).await?;
        Ok(store)
    }

    /// One that [`Store::new`] has made.
    pub fn open(agent: &Path, directory: &Path, client: Client) -> Result<Self> {
        let key = directory.join("age.key");
        Ok(Self { files: SopsStore::open(agent, directory, &key)?, key, client })
    }

    /// Writes a secret. The agents see it when kubelet has brought the ConfigMap to them.
    pub async fn write(&self, path: &str, document: &Value) -> Result<()> {
        self.write_all(&[(path, document.clone())]).await
    }

    /// Writes several in one step.
    pub async fn write_all(&self, documents: &[(&str, Value)]) -> Result<()> {
        let mut data = serde_json::Map::new();
        for (path, document) in documents {
            let text = String::from_utf8(self.files.encrypt(document)?)?;
            data.insert(format!("{path}.yaml"), text.into());
        }
        self.put(data).await
    }

    /// Writes a file as it stands.
    pub async fn write_raw(&self, path: &str, text: &str) -> Result<()> {
        self.put([(format!("{path}.yaml"), text.into())].into_iter().collect()).await
    }

    async fn put(&self, data: serde_json::Map<String, Value>) -> Result<()> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), SYSTEM);
        let patch =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": STORE}, "data": data});
        if maps.get_opt(STORE).await?.is_none() {
            let map = serde_json::from_value(patch)?;
            maps.create(&kube::api::PostParams::default(), &map).await.context("the store's ConfigMap")?;
        } else {
            maps.patch(STORE, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        Ok(())
    }
}
