//! Something between agent and issuer that hands on all that is said, and can keep the answers of a connection back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// What comes in one piece and is at least as long is a request: frames that keep a connection going are far shorter.
const REQUEST: usize = 400;

#[derive(Default)]
struct State {
    accepted: AtomicUsize,
    open: AtomicUsize,
    /// Answers of connections up to this number are kept back.
    held: watch::Sender<usize>,
    asked: Notify,
}

pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(State::default()));
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(server).await.unwrap();
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
                connections.spawn(connection(client, server, number, Arc::clone(&shared)));
            }
        });
        Self { address, state, _tasks: tasks }
    }

    /// How many connections were made so far.
    pub(crate) fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// How many are open now.
    pub(crate) fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// Keeps back what is answered on the connections that there are.
    pub(crate) fn hold(&self) {
        self.state.held.send_replace(self.accepted());
    }

    /// Waits for a request whose answer is kept back.
    pub(crate) async fn asked(&self) {
        self.state.asked.notified().await;
    }

    pub(crate) fn release(&self) {
        self.state.held.send_replace(0);
    }
}

async fn connection(client: TcpStream, server: TcpStream, number: usize, state: Arc<State>) {
    state.open.fetch_add(1, Ordering::SeqCst);
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(
        requests(from_client, to_server, number, &state),
        answers(from_server, to_client, number, &state)
    );
    state.open.fetch_sub(1, Ordering::SeqCst);
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, number: usize, state: &State) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let Ok(()) = to.write_all(&buffer[..read]).await else { return };
        if read >= REQUEST && number <= *state.held.borrow() {
            state.asked.notify_one();
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, number: usize, state: &State) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        state.held.subscribe().wait_for(|held| number > *held).await.unwrap();
        let Ok(()) = to.write_all(&buffer[..read]).await else { return };
    }
}
