//! An agent that does as it is told: it writes one file into each volume, refuses, keeps silent, or dies.
//!
//! It has a thread and a runtime of its own, so that it can be gone from one moment to the next.

use std::collections::HashMap;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use countersign_proto::agent::agent_server::{Agent, AgentServer};
use countersign_proto::agent::{
    AGENT_SOCKET, ForgetRequest, ForgetResponse, MAILBOX_SOCKET, PublishRequest, PublishResponse,
    ReconcileRequest, ReconcileResponse, SignalOrder, SignalledRequest, SignalledResponse, SignalsRequest,
};
use rustix::fs::{Mode, OFlags, openat};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};

/// What the agent does with a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Fills the volume and says so.
    Fill,
    /// Refuses it.
    Refuse(Code, &'static str),
    /// Does not answer until its manner changes.
    Hang,
    /// Fills the volume and leaves the file open for writing.
    FillAndKeepOpen,
    /// Fills a provisional one, refuses the one after it.
    RefuseLasting,
    /// Fills the volume, and is of a version that has no Reconcile.
    FillUnlisted,
}

/// What the agent was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Publish { id: String, keyed: bool, provisional: bool, token: String },
    Forget(String),
    Reconcile(Vec<String>),
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    last: Option<PublishRequest>,
    inbox: HashMap<Vec<u8>, OwnedFd>,
    volumes: HashMap<String, OwnedFd>,
    open: Vec<OwnedFd>,
    orders: Option<mpsc::Sender<Result<SignalOrder, Status>>>,
    signalled: Vec<SignalledRequest>,
}

struct Behaviour {
    publish: watch::Sender<Manner>,
    /// Forget and Reconcile are not answered while this is so.
    deaf: watch::Sender<bool>,
}

/// The agent's handle.
pub struct FakeAgent {
    state: Arc<Mutex<State>>,
    behaviour: Arc<Behaviour>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    link: PathBuf,
}

impl FakeAgent {
    /// Starts an agent in the link directory; it listens when this returns.
    pub fn start(link: &Path) -> Self {
        Self::start_as(link, Manner::Fill)
    }

    pub fn start_as(link: &Path, manner: Manner) -> Self {
        Self::start_with(link, manner, false)
    }

    pub fn start_with(link: &Path, manner: Manner, deaf: bool) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let behaviour =
            Arc::new(Behaviour { publish: watch::Sender::new(manner), deaf: watch::Sender::new(deaf) });
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = std::sync::mpsc::channel();
        let service = Service { state: Arc::clone(&state), behaviour: Arc::clone(&behaviour) };
        let directory = link.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let tasks = TaskTracker::new();
                let mailbox = mailbox(&directory.join(MAILBOX_SOCKET));
                tasks.spawn(receive(mailbox, Arc::clone(&service.state), tasks.clone()));
                std::fs::remove_file(directory.join(AGENT_SOCKET)).ok();
                let listener = UnixListener::bind(directory.join(AGENT_SOCKET)).unwrap();
                let server = tonic::transport::Server::builder()
                    .add_service(AgentServer::new(service))
                    .serve_with_incoming(UnixListenerStream::new(listener));
                tasks.spawn(server);
                ready.send(()).unwrap();
                stopped.await.ok();
            });
            // Everything that still runs ends here, as in a process that is killed.
            drop(runtime);
        });
        listening.recv().unwrap();
        Self { state, behaviour, stop: Some(stop), thread: Some(thread), link: link.to_owned() }
    }

    /// Ends the agent at once: calls in flight are cut off, descriptors closed.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        let mut state = self.lock();
        state.inbox.clear();
        state.volumes.clear();
        state.open.clear();
        state.orders = None;
        for socket in [AGENT_SOCKET, MAILBOX_SOCKET] {
            std::fs::remove_file(self.link.join(socket)).ok();
        }
    }

    pub fn behave(&self, manner: Manner) {
        self.behaviour.publish.send_replace(manner);
    }

    pub fn deafen(&self, deaf: bool) {
        self.behaviour.deaf.send_replace(deaf);
    }

    /// What it was asked so far; starts anew.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.lock().calls)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    pub fn publishes(&self) -> usize {
        self.calls().iter().filter(|call| matches!(call, Call::Publish { .. })).count()
    }

    pub fn forgot(&self, id: &str) -> bool {
        self.calls().contains(&Call::Forget(id.to_owned()))
    }

    /// The last publish in full.
    pub fn last_publish(&self) -> PublishRequest {
        self.lock().last.clone().unwrap()
    }

    pub fn holds(&self, id: &str) -> bool {
        self.lock().volumes.contains_key(id)
    }

    /// Descriptors that were sent and never named by a publish.
    pub fn unclaimed(&self) -> usize {
        self.lock().inbox.len()
    }

    /// Lets go of a volume's descriptor without telling anybody.
    pub fn lose(&self, id: &str) {
        assert!(self.lock().volumes.remove(id).is_some());
    }

    /// Orders that the pod of a volume be signalled; false while no driver has asked for orders.
    pub fn order(&self, order: u64, id: &str) -> bool {
        let order = SignalOrder { order, volume_id: id.to_owned() };
        self.lock().orders.as_ref().is_some_and(|orders| orders.try_send(Ok(order)).is_ok())
    }

    /// What became of the orders so far.
    pub fn signalled(&self) -> Vec<SignalledRequest> {
        self.lock().signalled.clone()
    }

    /// Writes into a volume as a refresh does.
    pub fn refresh(&self, id: &str, content: &str) -> rustix::io::Result<()> {
        write(self.lock().volumes.get(id).expect("the agent holds the volume"), content).map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.end();
    }
}

fn write(root: &OwnedFd, content: &str) -> rustix::io::Result<std::fs::File> {
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(root, "password", flags, Mode::from_raw_mode(0o444))?);
    file.write_all(content.as_bytes()).unwrap();
    Ok(file)
}

fn mailbox(path: &Path) -> UnixListener {
    std::fs::remove_file(path).ok();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 8).unwrap();
    UnixListener::from_std(socket.into()).unwrap()
}

async fn receive(listener: UnixListener, state: Arc<Mutex<State>>, tasks: TaskTracker) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tasks.spawn(async move {
            while let Some((key, descriptor)) = packet(&stream).await {
                assert!(state.lock().unwrap().inbox.insert(key, descriptor).is_none(), "a key came twice");
            }
        });
    }
}

async fn packet(stream: &UnixStream) -> Option<(Vec<u8>, OwnedFd)> {
    let received = stream.async_io(Interest::READABLE, || {
        let mut key = [0_u8; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut key)], &mut control, flags)?;
        let mut descriptors = Vec::new();
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = ancillary {
                descriptors.extend(received);
            }
        }
        Ok((key[..message.bytes].to_vec(), descriptors))
    });
    let (key, mut descriptors) = received.await.ok()?;
    if key.is_empty() {
        return None;
    }
    assert_eq!((key.len(), descriptors.len()), (16, 1));
    Some((key, descriptors.remove(0)))
}

struct Service {
    state: Arc<Mutex<State>>,
    behaviour: Arc<Behaviour>,
}

impl Service {
    async fn claim(&self, key: &[u8]) -> OwnedFd {
        loop {
            // The packet was sent before the call, on another socket: it may come in after it.
            if let Some(descriptor) = self.state.lock().unwrap().inbox.remove(key) {
                return descriptor;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn hear(&self) {
        self.behaviour.deaf.subscribe().wait_for(|deaf| !deaf).await.unwrap();
    }
}

#[tonic::async_trait]
impl Agent for Service {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        assert!(request.metadata().contains_key("grpc-timeout"), "the agent is not told how long it has");
        let message = request.into_inner();
        let (id, provisional) = (message.volume_id.clone(), message.provisional);
        let keyed = !message.mailbox_key.is_empty();
        let token = message.tokens[0].token.clone();
        let manner = {
            let mut state = self.state.lock().unwrap();
            state.calls.push(Call::Publish { id: id.clone(), keyed, provisional, token: token.clone() });
            state.last = Some(message.clone());
            self.behaviour.publish.borrow().clone()
        };
        let root = if keyed { Some(self.claim(&message.mailbox_key).await) } else { None };
        let manner = if manner == Manner::Hang {
            let mut changed = self.behaviour.publish.subscribe();
            changed.wait_for(|manner| *manner != Manner::Hang).await.unwrap().clone()
        } else {
            manner
        };
        match manner {
            Manner::Refuse(code, message) => return Err(Status::new(code, message)),
            Manner::RefuseLasting if !provisional => {
                return Err(Status::new(Code::Internal, "could not keep the volume"));
            }
            Manner::Fill
            | Manner::Hang
            | Manner::FillAndKeepOpen
            | Manner::RefuseLasting
            | Manner::FillUnlisted => {}
        }
        let mut state = self.state.lock().unwrap();
        if let Some(root) = root {
            let file = write(&root, &token).map_err(|errno| Status::internal(errno.to_string()))?;
            if manner == Manner::FillAndKeepOpen {
                state.open.push(file.into());
            }
            if !provisional {
                state.volumes.insert(id, root);
            }
        } else {
            let root = state.volumes.get(&id).ok_or_else(|| Status::failed_precondition("not held"))?;
            write(root, &token).map_err(|errno| Status::internal(errno.to_string()))?;
        }
        Ok(Response::new(PublishResponse {}))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<ForgetResponse>, Status> {
        let id = request.into_inner().volume_id;
        self.state.lock().unwrap().calls.push(Call::Forget(id.clone()));
        self.hear().await;
        if matches!(*self.behaviour.publish.borrow(), Manner::Refuse(Code::Unimplemented, _)) {
            return Err(Status::unimplemented(""));
        }
        self.state.lock().unwrap().volumes.remove(&id);
        Ok(Response::new(ForgetResponse {}))
    }

    async fn reconcile(
        &self,
        request: Request<ReconcileRequest>,
    ) -> Result<Response<ReconcileResponse>, Status> {
        let ids = request.into_inner().volume_ids;
        self.state.lock().unwrap().calls.push(Call::Reconcile(ids.clone()));
        self.hear().await;
        if *self.behaviour.publish.borrow() == Manner::FillUnlisted {
            return Err(Status::unimplemented(""));
        }
        let mut state = self.state.lock().unwrap();
        state.volumes.retain(|id, _| ids.contains(id));
        Ok(Response::new(ReconcileResponse { held: state.volumes.keys().cloned().collect() }))
    }

    type SignalsStream = ReceiverStream<Result<SignalOrder, Status>>;

    async fn signals(&self, _: Request<SignalsRequest>) -> Result<Response<Self::SignalsStream>, Status> {
        if matches!(*self.behaviour.publish.borrow(), Manner::Refuse(Code::Unimplemented, _)) {
            return Err(Status::unimplemented(""));
        }
        let (orders, ordered) = mpsc::channel(8);
        self.state.lock().unwrap().orders = Some(orders);
        Ok(Response::new(ReceiverStream::new(ordered)))
    }

    async fn signalled(
        &self,
        request: Request<SignalledRequest>,
    ) -> Result<Response<SignalledResponse>, Status> {
        self.state.lock().unwrap().signalled.push(request.into_inner());
        Ok(Response::new(SignalledResponse {}))
    }
}
