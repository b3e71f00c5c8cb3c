//! The Delegated Identity API of any SPIRE: we say what a pod's selectors are, and SPIRE believes us.
//!
//! That is the larger power: whoever holds our identity can have every identity of this node. The selectors are those
//! that SPIRE's own k8s attestor would find (its `getSelectorValuesFromPodInfo`), made from the pod as the API server
//! has it. Entries match when all of their selectors are among them, so a set that lacks one loses entries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use countersign_proto::delegated::delegated_identity_client::DelegatedIdentityClient;
use countersign_proto::delegated::{
    FetchJwtsviDsRequest, Selector, Spiffeid, SubscribeToJwtBundlesRequest, SubscribeToJwtBundlesResponse,
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse,
};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tracing::warn;

use super::JWT_LIMIT;
use super::answer::{Trouble, innermost, of_pod, unavailable};
use super::following::follow;
use super::keys::Keys;
use super::material::{Offer, Update};
use super::socket::{self, Socket};
use crate::identity::Workload;
use crate::kubernetes::pods::{Pod, Pods};
use crate::secret::Secret;
use crate::spiffe::TrustDomain;

/// How long the first bundles are waited for.
const FIRST_BUNDLES: Duration = Duration::from_secs(5);

/// How many selectors a message names.
const SHOWN: usize = 16;

/// DER roots of all trust domains, by their SPIFFE IDs.
type Bundles = HashMap<String, Vec<u8>>;

#[derive(Debug, Default)]
struct State {
    bundles: Option<Arc<Bundles>>,
    trouble: Option<String>,
}

/// A pod's selectors, for as long as its stream lives.
type Selectors = Arc<Vec<Selector>>;

/// Client of one SPIRE agent's admin socket.
#[derive(Debug)]
pub(super) struct Delegated {
    socket: Socket,
    client: DelegatedIdentityClient<Channel>,
    pods: Pods,
    state: watch::Sender<State>,
    keys: Keys,
    streamed: Mutex<HashMap<Workload, Weak<Vec<Selector>>>>,
}

impl Delegated {
    pub(super) fn new(socket: Socket, pods: Pods, domain: &TrustDomain) -> Self {
        Self {
            client: DelegatedIdentityClient::new(socket::plain(&socket)),
            socket,
            pods,
            state: watch::Sender::default(),
            keys: Keys::new(domain.clone()),
            streamed: Mutex::default(),
        }
    }

    /// Follows the bundles, for ever. To be dropped when the agent ends.
    pub(super) async fn follow(&self) {
        tokio::join!(self.follow_roots(), self.follow_keys());
    }

    async fn follow_roots(&self) {
        let open = || {
            let mut client = self.client.clone();
            async move { client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await }
        };
        let take = |message: SubscribeToX509BundlesResponse| {
            let bundles = message.ca_certificates.into_iter().map(|(name, ders)| (domain_id(&name), ders));
            let bundles = Some(Arc::new(bundles.collect()));
            self.state.send_replace(State { bundles, trouble: None });
            true
        };
        let note = |trouble: String| {
            self.state.send_if_modified(|state| {
                if state.trouble.as_ref() == Some(&trouble) {
                    return false;
                }
                warn!(%trouble, "SPIRE's bundles can't be followed");
                state.trouble = Some(trouble);
                true
            });
        };
        follow(&self.socket, open, meaning_of_bundles, take, note).await;
    }

    async fn follow_keys(&self) {
        let open = || {
            let mut client = self.client.clone();
            async move { client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await }
        };
        let take = |message: SubscribeToJwtBundlesResponse| {
            let bundles = message.bundles.into_iter().map(|(name, keys)| (domain_id(&name), keys));
            self.keys.learn(&bundles.collect());
            true
        };
        let trouble = |trouble: String| self.keys.trouble(&trouble);
        follow(&self.socket, open, meaning_of_bundles, take, trouble).await;
    }

    /// The keys that sign JWT-SVIDs of our trust domain.
    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Whether SPIRE lets us ask; else why not.
    pub(super) fn reached(&self) -> Result<(), String> {
        let state = self.state.borrow();
        match (&state.bundles, &state.trouble) {
            (Some(_), None) => Ok(()),
            (_, Some(trouble)) => Err(trouble.clone()),
            (None, None) => Err(format!("{}: SPIRE has not answered yet", self.socket)),
        }
    }

    /// Everything SPIRE says of the pod from now on, with the bundles as they are.
    pub(super) async fn subscribe(
        &self,
        workload: &Workload,
        meaning: impl Fn(&Status) -> Trouble,
    ) -> Result<BoxStream<'static, Result<Update, Status>>, Trouble> {
        let selectors = self.selectors(workload).await?;
        let mut bundles = self.state.subscribe();
        let first = bundles.wait_for(|state| state.bundles.is_some());
        if tokio::time::timeout(FIRST_BUNDLES, first).await.is_err() {
            let trouble = self.reached().err().unwrap_or_default();
            return Err(Trouble::Down(unavailable(format!("SPIRE: {trouble}"))));
        }
        let request = SubscribeToX509sviDsRequest { selectors: selectors.to_vec() };
        let answer = self.client.clone().subscribe_to_x509svi_ds(request).await;
        let messages = answer.map_err(|status| meaning(&status))?.into_inner();
        self.remember(workload, &selectors);
        let following = Following { messages, bundles, last: None, _selectors: selectors };
        Ok(stream::unfold(following, Following::next).boxed())
    }

    /// The pod's JWT-SVIDs for `audience`, with the SPIFFE ID that SPIRE says they are for.
    pub(super) async fn jwts(
        &self,
        workload: &Workload,
        audience: &str,
        meaning: impl Fn(&Status) -> Trouble,
    ) -> Result<Vec<(String, Secret)>, Trouble> {
        let streamed = self.streamed().get(workload).and_then(Weak::upgrade);
        let selectors = match streamed {
            Some(selectors) => selectors,
            None => self.selectors(workload).await?,
        };
        let audience = vec![audience.to_owned()];
        let mut request = Request::new(FetchJwtsviDsRequest { audience, selectors: selectors.to_vec() });
        request.set_timeout(JWT_LIMIT);
        let answer = self.client.clone().fetch_jwtsvi_ds(request).await;
        let svids = answer.map_err(|status| meaning(&status))?.into_inner().svids;
        Ok(svids.into_iter().map(|svid| (id(svid.id), Secret::from(svid.token))).collect())
    }

    /// The selectors that SPIRE was told last of the pod, in words; none: it was told nothing.
    pub(super) fn told(&self, workload: &Workload) -> Option<String> {
        let selectors = self.streamed().get(workload).and_then(Weak::upgrade)?;
        let shown: Vec<_> = selectors.iter().take(SHOWN).map(in_words).collect();
        let more = match selectors.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(shown.join(", ") + &more)
    }

    async fn selectors(&self, workload: &Workload) -> Result<Selectors, Trouble> {
        let pod = self.pods.read(workload).await.map_err(|error| of_pod(&error))?;
        Ok(Arc::new(selectors(&pod)))
    }

    fn streamed(&self) -> std::sync::MutexGuard<'_, HashMap<Workload, Weak<Vec<Selector>>>> {
        self.streamed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, workload: &Workload, selectors: &Selectors) {
        let mut streamed = self.streamed();
        streamed.retain(|_, selectors| selectors.strong_count() > 0);
        streamed.insert(workload.clone(), Arc::downgrade(selectors));
    }
}

/// A pod's stream, and the bundles beside it: a change of either is a change of the pod's state.
struct Following {
    messages: Streaming<SubscribeToX509sviDsResponse>,
    bundles: watch::Receiver<State>,
    last: Option<SubscribeToX509sviDsResponse>,
    _selectors: Selectors,
}

impl Following {
    async fn next(mut self) -> Option<(Result<Update, Status>, Self)> {
        loop {
            tokio::select! {
                message = self.messages.message() => match message {
                    Ok(Some(message)) => self.last = Some(message),
                    Ok(None) => return None,
                    Err(status) => return Some((Err(status), self)),
                },
                changed = self.bundles.changed(), if self.last.is_some() => {
                    // Nobody sends any more: the agent is ending.
                    changed.ok()?;
                }
            }
            let bundles = self.bundles.borrow_and_update().bundles.clone();
            if let (Some(message), Some(bundles)) = (&self.last, bundles) {
                return Some((Ok(update(message, &bundles)), self));
            }
        }
    }
}

/// One message in the form of the Broker API.
fn update(message: &SubscribeToX509sviDsResponse, bundles: &Bundles) -> Update {
    let offers = message.x509_svids.iter().map(|with_key| {
        let svid = with_key.x509_svid.clone().unwrap_or_default();
        let domain = svid.id.as_ref().map_or_else(String::new, |id| domain_id(&id.trust_domain));
        Offer {
            spiffe_id: id(svid.id),
            chain: svid.cert_chain.concat(),
            key: Secret::new(with_key.x509_svid_key.clone()),
            bundle: bundles.get(&domain).cloned().unwrap_or_default(),
            hint: svid.hint,
        }
    });
    // The bundles hold all that the agent knows, and never lose one: only the entries say whom the pod is to know.
    let federated = message.federates_with.iter().map(|name| domain_id(name));
    let federated = federated.filter_map(|domain| Some((domain.clone(), bundles.get(&domain)?.clone())));
    Update { offers: offers.collect(), federated: federated.collect() }
}

/// The SPIFFE ID of a trust domain that is called by its ID or by its bare name.
fn domain_id(name: &str) -> String {
    if name.starts_with("spiffe://") { name.to_owned() } else { format!("spiffe://{name}") }
}

fn id(id: Option<Spiffeid>) -> String {
    id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path)).unwrap_or_default()
}

fn meaning_of_bundles(status: &Status) -> String {
    let said = innermost(status);
    if status.code() == tonic::Code::PermissionDenied {
        format!(
            "the admin socket: {said}; name this agent's SPIFFE ID in authorized_delegates of the SPIRE agent, and make a registration entry that gives this agent's pod that ID"
        )
    } else {
        format!("the admin socket: {said}")
    }
}

/// As entries have it. What is very long is cut: a message has to bear it.
fn in_words(selector: &Selector) -> String {
    let Selector { r#type, value } = selector;
    let cut: String = value.chars().take(100).collect();
    format!("{type}:{cut}{}", if cut.len() < value.len() { "…" } else { "" })
}

/// What SPIRE's k8s attestor would find of the pod (SPIRE 1.15.2), less what only a running process has.
fn selectors(pod: &Pod) -> Vec<Selector> {
    let Pod { metadata, spec, status } = pod;
    let mut values = vec![
        format!("sa:{}", spec.service_account_name),
        format!("ns:{}", metadata.namespace),
        format!("node-name:{}", spec.node_name),
        format!("pod-uid:{}", metadata.uid),
        format!("pod-name:{}", metadata.name),
        format!("pod-image-count:{}", status.container_statuses.len()),
        format!("pod-init-image-count:{}", status.init_container_statuses.len()),
    ];
    for (kind, containers) in
        [("pod-image", &status.container_statuses), ("pod-init-image", &status.init_container_statuses)]
    {
        let names = containers.iter().flat_map(|container| [&container.image_id, &container.image]);
        values.extend(names.map(|name| format!("{kind}:{name}")));
    }
    values.extend(metadata.labels.iter().map(|(key, value)| format!("pod-label:{key}:{value}")));
    for owner in &metadata.owner_references {
        values.push(format!("pod-owner:{}:{}", owner.kind, owner.name));
        values.push(format!("pod-owner-uid:{}:{}", owner.kind, owner.uid));
    }
    values.sort_unstable();
    values.dedup();
    values.into_iter().map(|value| Selector { r#type: "k8s".to_owned(), value }).collect()
}

#[cfg(test)]
mod tests;
