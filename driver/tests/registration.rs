//! The registration socket, called the way kubelet calls it.
//!
//! Kubelet dials a registration socket by its bare path, and grpc-go makes the `:authority` of its requests from
//! that: the path, percent-encoded as a URL path segment. An HTTP/2 stack that takes an authority for a host
//! refuses the percent signs, and kubelet would never see an answer. So the requests here are written frame by
//! frame (RFC 9113, with the literals of RFC 7541 section 6.2.2), with exactly that authority.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on says so by panicking"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use countersign_driver::config::{CommandLine, Config};
use countersign_driver::registration::{Plugin, Standing, serve};
use countersign_proto::registration::registration_client::RegistrationClient;
use countersign_proto::registration::{PluginInfo, RegistrationStatus};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Endpoint;

const GET_INFO: &str = "/pluginregistration.Registration/GetInfo";

/// What Go's `url.PathEscape` makes of a path: these stay, everything else is percent-encoded.
fn path_escape(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z'
            | b'a'..=b'z'
            | b'0'..=b'9'
            | b'-'
            | b'_'
            | b'.'
            | b'~'
            | b'$'
            | b'&'
            | b'+'
            | b'='
            | b':'
            | b'@' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

struct Registry {
    directory: tempfile::TempDir,
    standing: watch::Receiver<Standing>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), countersign_driver::error::Error>>,
    socket: PathBuf,
}

impl Registry {
    /// Serves the registration of the driver that is configured with the defaults, in a directory of its own.
    async fn new(name: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let option = format!("--registration-dir={}", directory.path().display());
        let line = ["countersign-driver", "--node-id=n1", "--link-dir=/run/countersign", &option];
        let config = Config::try_from(CommandLine::try_parse_from(line).unwrap()).unwrap();
        let socket = name.map_or(config.registration_socket, |name| directory.path().join(name));
        let plugin = Plugin { name: config.driver_name, endpoint: config.csi_socket.display().to_string() };
        let (tell, standing) = watch::channel(Standing::default());
        let stop = CancellationToken::new();
        let task = TaskTracker::new().spawn(serve(socket.clone(), plugin, tell, stop.clone()));
        let registry = Self { directory, standing, stop, task, socket };
        registry.appears().await;
        registry
    }

    async fn appears(&self) {
        while !self.socket.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn notify(&self, plugin_registered: bool, error: &str) {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
        let status = RegistrationStatus { plugin_registered, error: error.into() };
        RegistrationClient::new(channel).notify_registration_status(status).await.unwrap();
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        assert_eq!(std::fs::read_dir(self.directory.path()).unwrap().count(), 0, "the socket is withdrawn");
    }
}

/// One HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// One header field: a literal that is not indexed, with a new name, not compressed.
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let mut bytes = Vec::new();
        // A string's length is an integer with a prefix of 7 bits.
        if text.len() < 127 {
            bytes.push(u8::try_from(text.len()).unwrap());
        } else {
            let mut rest = text.len() - 127;
            bytes.push(127);
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).unwrap());
        }
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    [vec![0], text(name), text(value)].concat()
}

/// What comes back for a `GetInfo`.
#[derive(Debug, PartialEq)]
enum Answer {
    Info(Vec<u8>),
    Reset(u32),
}

/// Sends what kubelet sends, and reads until the stream ends.
async fn get_info(socket: &Path, authority: &str) -> Answer {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;

    let mut stream = UnixStream::connect(socket).await.unwrap();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", GET_INFO),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.81.0"),
        ("te", "trailers"),
        ("grpc-timeout", "999999u"),
    ];
    let headers: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, END_HEADERS, 1, &headers),
        // An empty message: not compressed, 0 bytes.
        frame(DATA, END_STREAM, 1, &[0; 5]),
    ];
    stream.write_all(&request.concat()).await.unwrap();

    let mut message = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let of_stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) == 1;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        match kind {
            DATA if of_stream => message.extend(payload),
            RST_STREAM if of_stream => return Answer::Reset(u32::from_be_bytes(payload.try_into().unwrap())),
            SETTINGS if flags & 1 == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap(),
            _ => {}
        }
        if of_stream && kind == HEADERS && flags & END_STREAM != 0 {
            return Answer::Info(message);
        }
    }
}

#[tokio::test]
async fn kubelet_gets_an_answer() {
    let registry = Registry::new(None).await;
    let authority = path_escape(registry.socket.to_str().unwrap());
    assert!(
        authority.starts_with("%2F") && authority.ends_with("%2Fcsi.countersign.dev@reg.sock"),
        "{authority}"
    );
    let Answer::Info(message) = get_info(&registry.socket, &authority).await else {
        panic!("the stream was reset")
    };
    let info: PluginInfo = prost::Message::decode(&message[5..]).unwrap();
    assert_eq!(info.r#type, "CSIPlugin");
    assert_eq!(info.name, "csi.countersign.dev");
    assert_eq!(info.endpoint, "/var/lib/kubelet/plugins/csi.countersign.dev/csi.sock");
    assert_eq!(info.supported_versions, ["1.0.0"]);
    // What a kubelet that names an authority sends.
    assert_eq!(get_info(&registry.socket, "localhost").await, Answer::Info(message));
    registry.end().await;
}

#[tokio::test]
async fn the_usual_name_of_the_socket_would_get_none() {
    // Shows that the test above sends what it says: should this one fail, the trap is gone.
    const PROTOCOL_ERROR: u32 = 1;
    let registry = Registry::new(Some("csi.countersign.dev-reg.sock")).await;
    let authority = path_escape(registry.socket.to_str().unwrap());
    assert_eq!(get_info(&registry.socket, &authority).await, Answer::Reset(PROTOCOL_ERROR));
    registry.end().await;
}

#[tokio::test]
async fn it_notes_what_kubelet_says() {
    let registry = Registry::new(None).await;
    assert_eq!(*registry.standing.borrow(), Standing::Waiting);
    assert_eq!(std::fs::metadata(&registry.socket).unwrap().permissions().mode() & 0o777, 0o600);
    registry.notify(true, "").await;
    assert_eq!(*registry.standing.borrow(), Standing::Registered);
    registry.end().await;
}

#[tokio::test]
async fn refused_it_offers_itself_again() {
    let mut registry = Registry::new(None).await;
    registry.notify(false, "no such CSIDriver").await;
    assert_eq!(*registry.standing.borrow(), Standing::Refused("no such CSIDriver".into()));
    // The socket goes, which kubelet takes for a new plugin when it is back.
    while registry.socket.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    registry.appears().await;
    registry.notify(true, "").await;
    registry.standing.wait_for(|standing| *standing == Standing::Registered).await.unwrap();
    registry.end().await;
}
