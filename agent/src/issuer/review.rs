//! From a token to facts about a pod.

use serde::Deserialize;

use crate::issuer::kubernetes::Kubernetes;
use crate::issuer::offline::Offline;
use crate::issuer::refusal::TokenFault;
use crate::secret::Secret;

/// What a good pod-bound token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reviewed {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) pod_name: String,
    pub(crate) pod_uid: String,
    pub(crate) node_name: String,
    /// When the token ends, Unix seconds, where the reviewer knows.
    pub(crate) expires: Option<i64>,
}

impl Reviewed {
    /// For messages: `pod NAMESPACE/NAME (uid) of service account NAME`.
    pub(crate) fn describe(&self) -> String {
        describe(&self.namespace, &self.pod_name, &self.pod_uid, &self.service_account)
    }
}

pub(crate) fn describe(namespace: &str, pod: &str, uid: &str, service_account: &str) -> String {
    format!("pod {namespace}/{pod} ({uid}) of service account {service_account}")
}

/// Who reviews. Two ways are all there are, so this is an enum and not a trait.
pub(crate) enum Reviewer {
    /// By the cluster's public keys, on our own. Does not see that a pod is gone before its token ends.
    Offline(Box<Offline>),
    /// By asking the API server, which also looks whether the pod still exists.
    Kubernetes(Box<Kubernetes>),
    /// Counts reviews and answers by a function.
    #[cfg(test)]
    Scripted(tests::Scripted),
}

impl Reviewer {
    /// Reviews one token: its signature, time and audience, and whose it is.
    pub(crate) async fn review(&self, token: &Secret) -> Result<Reviewed, TokenFault> {
        match self {
            Self::Offline(offline) => offline.review(token).await,
            Self::Kubernetes(kubernetes) => kubernetes.review(token).await,
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.review(token).await,
        }
    }

    /// Whether reviews can be made at all.
    pub(crate) async fn probe(&self) -> Result<(), TokenFault> {
        match self {
            Self::Offline(offline) => offline.probe().await,
            Self::Kubernetes(kubernetes) => kubernetes.probe().await,
            #[cfg(test)]
            Self::Scripted(scripted) => scripted.review(&Secret::from("probe".to_owned())).await.map(|_| ()),
        }
    }
}

/// The `kubernetes.io` claim of a service account token, as far as it matters.
#[derive(Debug, Deserialize)]
pub(crate) struct BoundTo {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: Object,
    pub(crate) pod: Option<Object>,
    pub(crate) node: Option<Node>,
}

/// An object by name and uid.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// The node; its uid is not needed.
#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
}

/// The two names in `system:serviceaccount:NAMESPACE:NAME`.
pub(crate) fn service_account(username: &str) -> Option<(&str, &str)> {
    let (namespace, name) = username.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    type Answer = Box<dyn Fn(&Secret) -> Result<Reviewed, TokenFault> + Send + Sync>;

    /// A reviewer whose answers a test chooses.
    pub(crate) struct Scripted {
        pub(crate) calls: Arc<AtomicUsize>,
        pub(crate) answer: Arc<Mutex<Answer>>,
    }

    impl Scripted {
        pub(crate) async fn review(&self, token: &Secret) -> Result<Reviewed, TokenFault> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            self.answer.lock().unwrap()(token)
        }
    }

    #[test]
    fn usernames() {
        assert_eq!(service_account("system:serviceaccount:pay:api"), Some(("pay", "api")));
        for bad in [
            "system:node:a",
            "system:serviceaccount:pay",
            "system:serviceaccount::a",
            "system:serviceaccount:a:",
            "system:serviceaccount:a:b:c",
        ] {
            assert_eq!(service_account(bad), None, "{bad}");
        }
    }
}
