//! Where secrets are: one enum over the kinds of stores, one call to fetch.

use std::sync::Arc;
use std::time::Duration;

use crate::secret::Node;

/// What a store answered.
#[derive(Debug)]
pub struct Fetched {
    /// The secret.
    pub document: Arc<Node>,
    /// The store's word for this state of it: equal versions mean equal documents.
    pub version: String,
    /// How long it is good for, where the store knows better than the pod.
    pub fresh_for: Option<Duration>,
}
