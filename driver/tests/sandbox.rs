//! The seccomp filter, tried from the inside.
//!
//! A filter cannot be taken back, so it is installed in a child: this test binary, started again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on says so by panicking"
)]

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use countersign_driver::sandbox;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket, socketpair};
use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, getrlimit, kill_process, pidfd_open, pidfd_send_signal, prlimit,
};

/// Tells a child what it is.
const CHILD: &str = "COUNTERSIGN_TEST_SANDBOXED";

#[test]
fn only_unix_sockets_and_no_way_around() {
    if std::env::var_os(CHILD).is_some() {
        return in_the_sandbox();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "only_unix_sockets_and_no_way_around", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("every attempt was refused"), "{said}");
}

#[test]
fn of_all_signals_three_are_left() {
    if let Some(target) = std::env::var_os(CHILD) {
        return signalling(target.to_str().and_then(|pid| Pid::from_raw(pid.parse().ok()?)).unwrap());
    }
    let mut target = Command::new("sleep").arg("600").spawn().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "of_all_signals_three_are_left", "--nocapture"])
        .env(CHILD, target.id().to_string())
        .output()
        .unwrap();
    let ended = target.try_wait().unwrap();
    target.kill().unwrap();
    target.wait().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("every other was refused"), "{said}");
    assert_eq!(ended, None, "the other process was ended");
}

fn signalling(target: Pid) {
    let pidfd = pidfd_open(target, PidfdFlags::empty()).unwrap();
    let limit = getrlimit(Resource::Core);
    // Window changes are passed over by who knows nothing of them.
    sandbox::leave_only(&[Signal::WINCH.as_raw(), Signal::URG.as_raw()]).unwrap();
    for left in [Signal::WINCH, Signal::URG] {
        pidfd_send_signal(&pidfd, left).unwrap();
        assert_eq!(kill_process(target, left), Err(Errno::PERM), "by a number that another may have by now");
    }
    for refused in
        [Signal::HUP, Signal::KILL, Signal::TERM, Signal::STOP, Signal::INT, Signal::ABORT, Signal::CONT]
    {
        assert_eq!(pidfd_send_signal(&pidfd, refused), Err(Errno::PERM), "{refused:?}");
        assert_eq!(kill_process(target, refused), Err(Errno::PERM), "{refused:?}");
    }
    assert_eq!(prlimit(Some(target), Resource::Core, limit), Err(Errno::PERM), "a limit ends processes, too");
    assert_eq!(prlimit(None, Resource::Core, limit), Ok(limit), "one's own is one's own");
    println!("every other was refused");
}

fn in_the_sandbox() {
    // A thread that is older than the filter has to be under it as well.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let older = std::thread::spawn(move || {
        wait.recv().unwrap();
        UdpSocket::bind("127.0.0.1:0").map(drop)
    });
    assert!(TcpListener::bind("127.0.0.1:0").is_ok(), "there is a network to be denied");

    sandbox::install().unwrap();

    go.send(()).unwrap();
    let families = [
        AddressFamily::INET,
        AddressFamily::INET6,
        AddressFamily::NETLINK,
        AddressFamily::PACKET,
        AddressFamily::VSOCK,
        // AF_ALG.
        AddressFamily::from_raw(38),
        AddressFamily::UNSPEC,
    ];
    for family in families {
        for kind in [SocketType::STREAM, SocketType::DGRAM, SocketType::RAW] {
            assert_eq!(socket(family, kind, None).map(drop), Err(Errno::AFNOSUPPORT), "{family:?} {kind:?}");
        }
        let pair = socketpair(family, SocketType::STREAM, SocketFlags::empty(), None);
        assert_eq!(pair.map(drop), Err(Errno::AFNOSUPPORT), "{family:?}");
    }
    let refused = |error: std::io::Error| Errno::from_io_error(&error);
    assert_eq!(TcpStream::connect("127.0.0.1:9").map_err(refused).err(), Some(Some(Errno::AFNOSUPPORT)));
    assert_eq!(older.join().unwrap().map_err(refused).err(), Some(Some(Errno::AFNOSUPPORT)));
    let newer = std::thread::spawn(|| TcpListener::bind("127.0.0.1:0").map(drop)).join().unwrap();
    assert_eq!(newer.map_err(refused).err(), Some(Some(Errno::AFNOSUPPORT)));

    // No other program.
    assert_eq!(Command::new("/bin/true").status().unwrap_err().kind(), ErrorKind::PermissionDenied);
    // No other namespace.
    let namespace = std::fs::File::open("/proc/self/ns/mnt").unwrap();
    let entered = rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), None);
    assert_eq!(entered, Err(Errno::PERM));
    // No descriptors from others.
    let (one, other) = UnixStream::pair().unwrap();
    let mut buffer = [0];
    let received = rustix::net::recvmsg(
        &one,
        &mut [std::io::IoSliceMut::new(&mut buffer)],
        &mut rustix::net::RecvAncillaryBuffer::default(),
        rustix::net::RecvFlags::DONTWAIT,
    );
    assert_eq!(received.map(drop), Err(Errno::PERM));
    let process =
        rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
    let copied = rustix::process::pidfd_getfd(process.unwrap(), 0, rustix::process::PidfdGetfdFlags::empty());
    assert_eq!(copied.map(drop), Err(Errno::PERM));

    // And what the driver lives from still works.
    std::io::Write::write_all(&mut &other, b"x").unwrap();
    std::io::Read::read_exact(&mut &one, &mut buffer).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("x.sock")).unwrap();
    UnixStream::connect(directory.path().join("x.sock")).unwrap();
    listener.accept().unwrap();
    // A second filter can only narrow further.
    sandbox::install().unwrap();
    println!("every attempt was refused");
}
