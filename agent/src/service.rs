//! The link to the driver: requests parsed once, handed to the keeper, answered.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use countersign_proto::agent as wire;
use countersign_proto::agent::agent_server::{Agent, AgentServer};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use rustix::net::{AddressFamily, SocketFlags, SocketType, listen, socket_with};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing::{debug, info, warn};

use crate::Error;
use crate::clock::Clock;
use crate::identity::{Token, Workload};
use crate::keeper::Handle;
use crate::mailbox::{Mailbox, MailboxKey, private_bind};
use crate::metrics::Metrics;
use crate::notify::{POSTS_OFF, SIGNALS_OFF, Signals};
use crate::request::{self, OnChange, StoreNames};
use crate::secret::Secret;
use crate::volume::{Publish, VolumeId};

/// Requests are small: kubelet's annotations are at most 256 KiB in all, tokens a few KiB each.
const MESSAGE_LIMIT: usize = 2 << 20;

/// What a volume may hold when the driver does not say: the driver's own default.
const DEFAULT_CAPACITY: u64 = 4 << 20;

/// The Agent service.
#[derive(Debug, Clone)]
pub struct Service {
    /// Where volumes are kept.
    pub keeper: Handle,
    /// Where their descriptors arrive.
    pub mailbox: Mailbox,
    /// The stores a request may name.
    pub stores: Arc<StoreNames>,
    /// Whether pods are called when their files have changed.
    pub calls: bool,
    /// The driver's orders for signals.
    pub signals: Signals,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Clock,
}

impl Service {
    /// Serves the socket at `path` until `shutdown`, to peers of `driver_uid` only.
    pub async fn serve(self, path: &Path, driver_uid: u32, shutdown: CancellationToken) -> io::Result<()> {
        let listener = bound_listener(path)?;
        let signals = self.signals.clone();
        let ending = async move {
            shutdown.cancelled().await;
            // The server waits for its last call, and the driver's for orders is one without an end of its own.
            signals.end();
        };
        info!(socket = %path.display(), "waiting for the driver");
        Server::builder()
            .add_service(AgentServer::new(self).max_decoding_message_size(MESSAGE_LIMIT))
            .serve_with_incoming_shutdown(of_uid(listener, driver_uid), ending)
            .await
            .map_err(io::Error::other)
    }

    async fn published(&self, request: wire::PublishRequest) -> Result<(), Error> {
        let (key, sent) = (request.mailbox_key.clone(), request.signals);
        let mut publish = parse(request, &self.stores)?;
        publish.unheard = match &publish.request.on_change {
            Some(OnChange::Post(_)) if !self.calls => Some(POSTS_OFF),
            Some(OnChange::Signal(_)) if !sent => Some(SIGNALS_OFF),
            Some(_) | None => None,
        };
        publish.directory = self.descriptor(&key).await?;
        self.keeper.publish(publish).await
    }

    /// The descriptor the request names, if it names one.
    async fn descriptor(&self, key: &[u8]) -> Result<Option<OwnedFd>, Error> {
        if key.is_empty() {
            return Ok(None);
        }
        let length = key.len();
        let key = MailboxKey::try_from(key)
            .map_err(|_| Error::request("mailbox_key", format!("must have 16 bytes, has {length}")))?;
        // It was sent before the request: one that does not come was lost with its connection.
        self.mailbox.claim(&key).await.map(Some).ok_or(Error::NoDirectory)
    }
}

#[tonic::async_trait]
impl Agent for Service {
    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<Response<wire::PublishResponse>, Status> {
        let began = self.clock.now();
        let request = request.into_inner();
        let volume_id = request.volume_id.clone();
        let result = self.published(request).await;
        self.metrics.published(self.clock.now() - began, result.as_ref().copied());
        if let Err(error) = &result {
            debug!(%volume_id, %error, "publish refused");
        }
        result?;
        Ok(Response::new(wire::PublishResponse {}))
    }

    async fn forget(
        &self,
        request: Request<wire::ForgetRequest>,
    ) -> Result<Response<wire::ForgetResponse>, Status> {
        self.keeper.forget(VolumeId::from(request.into_inner().volume_id.as_str())).await?;
        Ok(Response::new(wire::ForgetResponse {}))
    }

    async fn reconcile(
        &self,
        request: Request<wire::ReconcileRequest>,
    ) -> Result<Response<wire::ReconcileResponse>, Status> {
        let ids = request.into_inner().volume_ids;
        info!(volumes = ids.len(), "the driver has connected");
        let held = self.keeper.reconcile(ids.iter().map(|id| VolumeId::from(id.as_str())).collect()).await?;
        Ok(Response::new(wire::ReconcileResponse {
            held: held.iter().map(|id| id.as_str().to_owned()).collect(),
        }))
    }

    type SignalsStream = BoxStream<'static, Result<wire::SignalOrder, Status>>;

    async fn signals(
        &self,
        _: Request<wire::SignalsRequest>,
    ) -> Result<Response<Self::SignalsStream>, Status> {
        debug!("the driver has signals sent");
        Ok(Response::new(ReceiverStream::new(self.signals.orders()).map(Ok).boxed()))
    }

    async fn signalled(
        &self,
        request: Request<wire::SignalledRequest>,
    ) -> Result<Response<wire::SignalledResponse>, Status> {
        self.signals.answered(request.into_inner());
        Ok(Response::new(wire::SignalledResponse {}))
    }
}

fn parse(request: wire::PublishRequest, stores: &StoreNames) -> Result<Publish, Error> {
    let wire::PublishRequest {
        volume_id,
        pod,
        attributes,
        tokens,
        mailbox_key: _,
        provisional,
        fs_group,
        capacity_bytes,
        signals: _,
    } = request;
    // First of all, so that no way out of here leaves a token behind in memory.
    let tokens = tokens
        .into_iter()
        .map(|wire::Token { audience, token }| Token { audience, token: Secret::from(token) })
        .collect();
    let pod = pod.ok_or_else(|| Error::request("pod", "the driver named no pod"))?;
    let wire::Pod { namespace, name, uid, service_account } = pod;
    for (key, value) in [
        ("volume_id", &volume_id),
        ("pod.namespace", &namespace),
        ("pod.name", &name),
        ("pod.uid", &uid),
        ("pod.service_account", &service_account),
    ] {
        if value.is_empty() {
            return Err(Error::request(key, "is empty"));
        }
    }
    let request = request::Request::parse(attributes, stores)?;
    let hint = request.hint.clone();
    Ok(Publish {
        id: VolumeId::from(volume_id.as_str()),
        workload: Workload { namespace, pod_name: name, pod_uid: uid, service_account, hint },
        request,
        tokens,
        // A driver that does not say so gives every volume what it would by default.
        capacity: if capacity_bytes == 0 { DEFAULT_CAPACITY } else { capacity_bytes },
        fs_group,
        directory: None,
        provisional,
        unheard: None,
    })
}

/// A listening socket that nobody but its owner and root may open.
pub(crate) fn bound_listener(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    private_bind(&socket, path)?;
    listen(&socket, 64)?;
    UnixListener::from_std(socket.into())
}

/// The connections of peers that run as `uid`.
fn of_uid(listener: UnixListener, uid: u32) -> impl Stream<Item = io::Result<UnixStream>> {
    UnixListenerStream::new(listener).filter_map(move |accepted| {
        let admitted = accepted.and_then(|stream| {
            let peer = stream.peer_cred()?.uid();
            if peer != uid {
                warn!(uid = peer, expected = uid, "link: a peer of another uid was turned away");
                return Ok(None);
            }
            Ok(Some(stream))
        });
        std::future::ready(admitted.transpose())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every version of the driver has sent.
    fn oldest() -> wire::PublishRequest {
        wire::PublishRequest {
            volume_id: "csi-1".to_owned(),
            pod: Some(wire::Pod {
                namespace: "pay".to_owned(),
                name: "api-0".to_owned(),
                uid: "u".to_owned(),
                service_account: "api".to_owned(),
            }),
            attributes: [("secret.countersign.dev/a".to_owned(), "s:a".to_owned())].into(),
            tokens: vec![wire::Token { audience: "countersign".to_owned(), token: "t".to_owned() }],
            ..wire::PublishRequest::default()
        }
    }

    #[test]
    fn a_driver_that_sends_less_is_understood() {
        let stores = StoreNames::from_iter(["s"]);
        let publish = parse(oldest(), &stores).unwrap();
        assert_eq!((publish.capacity, publish.fs_group, publish.provisional), (4 << 20, None, false));
    }

    #[test]
    fn a_hint_says_whose_identity_is_asked_for() {
        let stores = StoreNames::from_iter(["s"]);
        let mut message = oldest();
        message.attributes.insert("svid.countersign.dev/hint".to_owned(), "internal".to_owned());
        let publish = parse(message, &stores).unwrap();
        assert_eq!(publish.workload.hint.as_deref(), Some("internal"));
    }

    #[test]
    fn what_cannot_be_done_without_is_named() {
        let stores = StoreNames::from_iter(["s"]);
        let error = parse(wire::PublishRequest { pod: None, ..oldest() }, &stores).unwrap_err();
        assert_eq!(error.to_string(), "pod: the driver named no pod");
        let error =
            parse(wire::PublishRequest { volume_id: String::new(), ..oldest() }, &stores).unwrap_err();
        assert_eq!(error.to_string(), "volume_id: is empty");
    }
}
