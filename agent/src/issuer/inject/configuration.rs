//! Keeps the certificate authority in the webhook's configuration current: all roots of all replicas, for the API
//! server may reach any of them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::issuer::bundle;
use crate::issuer::keys::Keys;
use crate::kubernetes::{Api, ApiError, Look, ObjectName, Patch, follow};

/// The first and the longest pause after a write that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The part of a `MutatingWebhookConfiguration` that matters here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Configuration {
    #[serde(default)]
    webhooks: Vec<Webhook>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Webhook {
    name: String,
    client_config: ClientConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientConfig {
    #[serde(default)]
    ca_bundle: String,
}

/// Keeps one configuration.
pub(crate) struct WebhookConfiguration {
    api: Arc<Api>,
    object: ObjectName,
    keys: Arc<Keys>,
}

impl WebhookConfiguration {
    pub(crate) fn new(api: Arc<Api>, object: ObjectName, keys: Arc<Keys>) -> Self {
        Self { api, object, keys }
    }

    /// Keeps it until `shutdown`.
    pub(crate) async fn run(&self, shutdown: &CancellationToken) {
        let seen = watch::Sender::new(None);
        tokio::join!(
            follow::<Configuration>(&self.api, &self.object, shutdown, |look| match look {
                Look::Is(configuration) => {
                    seen.send_replace(Some(configuration));
                }
                Look::Missing => {
                    tracing::warn!(object = %self.object, "does not exist; --webhook-configuration must name it");
                    seen.send_replace(None);
                }
                Look::Failed(error) => tracing::warn!(%error, "can't follow {}", self.object),
            }),
            self.keep(seen.subscribe(), shutdown),
        );
    }

    async fn keep(&self, mut seen: watch::Receiver<Option<Configuration>>, shutdown: &CancellationToken) {
        let mut changes = self.keys.revisions();
        let mut failures = 0;
        loop {
            changes.mark_unchanged();
            let configuration = seen.borrow_and_update().clone();
            let mut retry = None;
            // Before that, the other replicas' roots may be missing.
            if let Some(configuration) = configuration.filter(|_| self.keys.is_open()) {
                match self.write(&configuration).await {
                    Ok(written) => {
                        failures = 0;
                        if written {
                            tracing::info!(object = %self.object, "its certificate authority is brought up to date");
                        }
                    }
                    Err(error) => {
                        let pause = RETRY.0.saturating_mul(1 << failures.min(10)).min(RETRY.1);
                        failures += 1;
                        tracing::warn!(%error, object = %self.object, "its certificate authority can't be written");
                        retry = Some(pause);
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                // Both senders live as long as this does.
                _ = seen.changed() => {}
                _ = changes.changed() => {}
                () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
            }
        }
    }

    /// Writes the roots where others stand. Says whether that was anywhere.
    async fn write(&self, configuration: &Configuration) -> Result<bool, ApiError> {
        let authority = STANDARD.encode(bundle::pem(&self.keys.roots()));
        let steps: Vec<Value> = configuration
            .webhooks
            .iter()
            .enumerate()
            .filter(|(_, webhook)| webhook.client_config.ca_bundle != authority)
            .flat_map(|(at, webhook)| {
                let webhooks = format!("/webhooks/{at}");
                [
                    json!({ "op": "test", "path": format!("{webhooks}/name"), "value": webhook.name }),
                    json!({ "op": "add", "path": format!("{webhooks}/clientConfig/caBundle"), "value": authority }),
                ]
            })
            .collect();
        if steps.is_empty() {
            return Ok(false);
        }
        self.api.patch::<Value>(&self.object.path(), Patch::Json, &steps).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::svid::moment;
    use crate::issuer::root::LIFE;
    use crate::issuer::tests::cluster::{Cluster, NOW, clock};
    use crate::kubernetes::Resource;
    use crate::kubernetes::testing::ApiServer;

    const PATH: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/countersign";

    #[tokio::test]
    async fn the_roots_are_written_and_written_again_when_they_or_the_object_change() {
        let (cluster, server) = (Cluster::new(), ApiServer::start().await);
        let keys = Arc::new(Keys::new(&cluster.config(), moment(NOW)).unwrap());
        let webhook = |name: &str| json!({"name": name, "clientConfig": {"service": {"name": "countersign-webhook"}}, "sideEffects": "None"});
        let fresh =
            json!({"metadata": {"name": "countersign"}, "webhooks": [webhook("one"), webhook("two")]});
        server.put(PATH, fresh.clone());
        let object = ObjectName::cluster(Resource::MutatingWebhookConfigurations, "countersign").unwrap();
        let kept =
            WebhookConfiguration::new(server.api(cluster.dir.path(), clock()), object, Arc::clone(&keys));
        let shutdown = CancellationToken::new();
        let authority = || json!(STANDARD.encode(bundle::pem(&keys.roots())));
        let holds = |object: Option<&Value>| {
            let webhooks = object.unwrap()["webhooks"].as_array().unwrap();
            webhooks.iter().all(|webhook| webhook["clientConfig"]["caBundle"] == authority())
        };
        let script = async {
            server.until(PATH, holds).await;
            let now = server.object(PATH).unwrap();
            assert_eq!(now["webhooks"][0]["sideEffects"], "None", "nothing else is touched");
            keys.advance(moment(NOW) + LIFE / 2).unwrap();
            server.until(PATH, holds).await;
            // helm writes the object anew.
            server.will_refuse(500, "not now");
            server.put(PATH, fresh.clone());
            server.until(PATH, holds).await;
            shutdown.cancel();
        };
        tokio::join!(kept.run(&shutdown), script);
    }
}
