//! `countersign-driver probe`: whether the driver beside it still answers.
//!
//! Kubelet runs this in the driver's container, for it can ask no Unix socket by itself. It connects to the status
//! socket, reads its line and ends: no CSI call, no mount, no path of kubelet's. The driver has one thread, so one that
//! writes this line is also one that takes kubelet's calls.

use std::io::{BufRead, BufReader, Error, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use countersign_proto::agent::STATUS_SOCKET;

/// The word on the command line that asks for it.
pub const WORD: &str = "probe";
/// How long the line may take. Kubelet gives the whole command five seconds in the chart.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most bytes of a line; the driver's has some two hundred.
const LONGEST: u64 = 64 * 1024;

/// Ends well if the driver on this node answers.
#[derive(Debug, Parser)]
#[command(name = "countersign-driver probe", version)]
pub struct CommandLine {
    /// Directory shared with the agent, as the driver was given it
    #[arg(long, env = "COUNTERSIGN_LINK_DIR")]
    pub link_dir: PathBuf,
}

/// The status line of the driver that uses `link_dir`.
///
/// # Errors
/// In words for who reads kubelet's event: it is not running, or does not answer.
pub fn ask(link_dir: &Path) -> Result<String, String> {
    let socket = link_dir.join(STATUS_SOCKET);
    let told = |error: Error| {
        let kind = error.kind();
        let problem = if matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
            "the driver is not running".to_owned()
        } else if matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut) {
            format!("the driver did not answer within {} s", PATIENCE.as_secs())
        } else {
            format!("the driver can't be asked: {kind}")
        };
        format!("{}: {problem}", socket.display())
    };
    let stream = UnixStream::connect(&socket).map_err(told)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(told)?;
    let mut line = String::new();
    BufReader::new(std::io::Read::take(stream, LONGEST)).read_line(&mut line).map_err(told)?;
    if line.ends_with('\n') {
        return Ok(line);
    }
    Err(format!("{}: the driver ended in the middle of its answer", socket.display()))
}
