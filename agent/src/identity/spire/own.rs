//! Our own SVID, from the Workload API: what we are known by at the broker's door.

use std::io;
use std::sync::Arc;

use countersign_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_proto::workload::{JwtBundlesRequest, JwtBundlesResponse, X509svidRequest, X509svidResponse};
use rustls::ClientConfig;
use tokio::sync::watch;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tracing::{info, warn};

use super::answer::innermost;
use super::following::follow;
use super::keys::Keys;
use super::material::{Update, same};
use super::socket::{self, Socket};
use super::tls::client_config;
use crate::clock::Clock;
use crate::identity::X509Svid;
use crate::spiffe::TrustDomain;

#[derive(Debug, Default)]
struct State {
    svid: Option<Arc<X509Svid>>,
    trouble: Option<String>,
}

/// Our own SVID and its keeping.
#[derive(Debug)]
pub(super) struct Own {
    socket: Socket,
    client: SpiffeWorkloadApiClient<Channel>,
    domain: TrustDomain,
    clock: Clock,
    state: watch::Sender<State>,
    keys: Keys,
}

impl Own {
    pub(super) fn new(socket: Socket, domain: TrustDomain, clock: Clock) -> Self {
        let client = SpiffeWorkloadApiClient::new(socket::plain(&socket));
        let keys = Keys::new(domain.clone());
        Self { socket, client, domain, clock, state: watch::Sender::default(), keys }
    }

    /// Follows what the Workload API says, for ever. To be dropped when the agent ends.
    pub(super) async fn follow(&self) {
        tokio::join!(self.follow_svid(), self.follow_keys());
    }

    async fn follow_keys(&self) {
        let open = || {
            let mut client = self.client.clone();
            async move { client.fetch_jwt_bundles(request(JwtBundlesRequest {})).await }
        };
        let take = |message: JwtBundlesResponse| {
            self.keys.learn(&message.bundles);
            true
        };
        let trouble = |trouble: String| self.keys.trouble(&trouble);
        follow(&self.socket, open, |status| self.meaning(status), take, trouble).await;
    }

    /// The keys that sign JWT-SVIDs of our trust domain.
    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    async fn follow_svid(&self) {
        let open = || {
            let mut client = self.client.clone();
            async move { client.fetch_x509svid(request(X509svidRequest {})).await }
        };
        let meaning = |status: &Status| self.meaning(status);
        follow(&self.socket, open, meaning, |message| self.take(message), |trouble| self.note(trouble)).await;
    }

    /// Takes in what is said of ourselves; false if it gives us no SVID.
    fn take(&self, message: X509svidResponse) -> bool {
        match Update::from(message).read(&self.domain, None, self.clock.wall()) {
            Ok(Some(svid)) => {
                self.hold(svid);
                return true;
            }
            Ok(None) => self.note(self.no_entry("it sends no SVID")),
            Err(unusable) => self.note(format!("{}: {unusable}", self.socket)),
        }
        false
    }

    fn meaning(&self, status: &Status) -> String {
        let said = innermost(status);
        if status.code() == Code::PermissionDenied {
            self.no_entry(&said)
        } else {
            format!("the Workload API: {said}")
        }
    }

    fn no_entry(&self, said: &str) -> String {
        format!(
            "{}: SPIRE has no registration entry for this agent itself ({said}); make one that matches its pod, with this node's SPIRE agent as parent",
            self.socket
        )
    }

    fn hold(&self, svid: X509Svid) {
        let unchanged = self.state.borrow().svid.as_ref().is_some_and(|held| same(held, &svid));
        let healed = self.state.borrow().trouble.is_some();
        if unchanged && !healed {
            return;
        }
        info!(spiffe_id = %svid.spiffe_id, "SPIRE has given this agent its own SVID");
        self.state.send_replace(State { svid: Some(Arc::new(svid)), trouble: None });
    }

    fn note(&self, trouble: String) {
        self.state.send_if_modified(|state| {
            if state.trouble.as_ref() == Some(&trouble) {
                return false;
            }
            warn!(%trouble, holds_one = state.svid.is_some(), "this agent's own SVID can't be renewed");
            state.trouble = Some(trouble);
            true
        });
    }

    /// Our SPIFFE ID, once it is known.
    pub(super) fn id(&self) -> Option<String> {
        self.state.borrow().svid.as_ref().map(|svid| svid.spiffe_id.to_string())
    }

    /// Our SVID, if it has not ended.
    pub(super) fn living(&self) -> Result<Arc<X509Svid>, String> {
        let state = self.state.borrow();
        let trouble = state.trouble.as_deref().unwrap_or("the Workload API has not answered yet");
        match &state.svid {
            None => Err(format!("this agent has no SVID of its own yet: {trouble}")),
            Some(svid) if svid.not_after <= self.clock.wall() => {
                Err(format!("this agent's own SVID has ended: {trouble}"))
            }
            Some(svid) => Ok(Arc::clone(svid)),
        }
    }

    /// Waits until SPIRE has told us who we are.
    pub(super) async fn known(&self) {
        // Not an error while `self` lives, for it holds the sender.
        self.state.subscribe().wait_for(|state| state.svid.is_some()).await.map(drop).unwrap_or_default();
    }

    /// TLS as ourselves, now.
    pub(super) fn tls(&self) -> io::Result<Arc<ClientConfig>> {
        let svid = self.living().map_err(io::Error::other)?;
        client_config(&svid, self.clock).map(Arc::new).map_err(io::Error::other)
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", AsciiMetadataValue::from_static("true"));
    request
}
