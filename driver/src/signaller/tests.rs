//! A pod's processes in a directory that looks like `/proc`, and real ones behind it where signals are sent.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use countersign_proto::signal::SignalTarget;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::choose::choose;
use super::proc::Process;
use super::send::Node;
use super::wire::{Order, Outcome, PodUid, ask};
use super::*;
use crate::volume::{Place, VolumeId};

const POD: &str = "0f3c2a61-93a2-4f57-8f0d-1b7f6a2f9a10";
const OTHER: &str = "1f3c2a61-93a2-4f57-8f0d-1b7f6a2f9a11";
const HUP: u64 = 1;

fn volume() -> VolumeId {
    VolumeId::of(&Place::parse("", &format!("/pods/{POD}/volumes/kubernetes.io~csi/secrets/mount")).unwrap())
}

fn order(asked: &str) -> Order {
    Order { pod: PodUid::parse(POD).unwrap(), volume: volume(), target: asked.parse().unwrap() }
}

/// A directory that looks like `/proc`.
struct Proc(TempDir);

/// One process in it.
struct Seen<'a> {
    pid: i32,
    parent: i32,
    name: &'a str,
    started: u64,
    inner: u32,
    pod: &'a str,
    container: &'a str,
    mounts: bool,
    caught: u64,
    ignored: u64,
    blocked: u64,
}

impl Default for Seen<'_> {
    fn default() -> Self {
        Self {
            pid: 0,
            parent: 50,
            name: "app",
            started: 100,
            inner: 1,
            pod: POD,
            container: "c1",
            mounts: true,
            caught: HUP,
            ignored: 0,
            blocked: 0,
        }
    }
}

impl Proc {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(processes: &[Seen<'_>]) -> Self {
        let proc = Self::new();
        for seen in processes {
            proc.put(seen);
        }
        proc
    }

    fn directory(&self, pid: i32) -> PathBuf {
        self.0.path().join(pid.to_string())
    }

    fn put(&self, seen: &Seen<'_>) {
        let Seen { pid, parent, name, started, inner, caught, ignored, blocked, .. } = seen;
        self.surroundings(seen);
        let directory = self.directory(*pid);
        let stat = format!("{pid} ({name}) S {parent} 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {started} 0 0\n");
        fs::write(directory.join("stat"), stat).unwrap();
        let status = format!(
            "NSpid:\t{pid}\t{inner}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        );
        fs::write(directory.join("status"), status).unwrap();
    }

    /// Its cgroup and what is mounted.
    fn surroundings(&self, seen: &Seen<'_>) {
        let directory = self.directory(seen.pid);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("cgroup"), format!("0::/kubepods/pod{}/{}\n", seen.pod, seen.container))
            .unwrap();
        let ours = format!("77 70 0:50 / /var/run/secrets ro,relatime - tmpfs countersign:{} ro\n", volume());
        let table = format!(
            "70 1 0:40 / / rw - overlay overlay rw\n{}",
            if seen.mounts { ours } else { String::new() }
        );
        fs::write(directory.join("mountinfo"), table).unwrap();
    }

    /// A real process, its own word on its signals included, as one of the pod's.
    fn real(&self, child: &Child, name: &str) {
        let pid = i32::try_from(child.id()).unwrap();
        self.surroundings(&Seen { pid, ..Seen::default() });
        let (directory, real) = (self.directory(pid), PathBuf::from(format!("/proc/{pid}")));
        symlink(real.join("stat"), directory.join("stat")).unwrap();
        // Not in one of the moments in which a shell holds all signals back.
        let status = loop {
            let status = fs::read_to_string(real.join("status")).unwrap();
            if status.contains("SigBlk:\t0000000000000000\n") {
                break status;
            }
        };
        assert!(status.starts_with(&format!("Name:\t{name}\n")), "{status}");
        let below = status.replace(&format!("NSpid:\t{pid}"), &format!("NSpid:\t{pid}\t1"));
        fs::write(directory.join("status"), below).unwrap();
    }

    fn node(&self) -> Node {
        Node { proc: self.0.path().to_owned() }
    }

    fn chosen(&self, asked: &str) -> Vec<i32> {
        let target: SignalTarget = asked.parse().unwrap();
        let all = Process::all(self.0.path(), &PodUid::parse(POD).unwrap()).unwrap();
        let see = |process: &&Process| process.sees(self.0.path(), volume());
        let mut chosen: Vec<i32> = choose(&all, &target)
            .into_iter()
            .filter(see)
            .map(|process| process.pid.as_raw_nonzero().get())
            .collect();
        chosen.sort_unstable();
        chosen
    }
}

/// A shell that says in a file that it got SIGHUP, and goes on.
struct Shell {
    child: Child,
    heard: PathBuf,
    _directory: TempDir,
}

impl Shell {
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let heard = directory.path().join("heard");
        // Whoever runs the tests may ignore SIGHUP, as under nohup: a shell could not trap it then.
        let child = Command::new("env")
            .args(["--default-signal=HUP", "sh", "-c", script])
            .arg(&heard)
            .spawn()
            .unwrap();
        Self { child, heard, _directory: directory }
    }

    fn trapping() -> Self {
        let shell =
            Self::new(r#"trap 'echo hup >>"$0"' HUP; echo ready >"$0"; while :; do sleep 0.05; done"#);
        shell.says("ready\n");
        shell
    }

    fn says(&self, text: &str) {
        for _ in 0..4000 {
            if fs::read_to_string(&self.heard).unwrap_or_default() == text {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("waited in vain for {text:?}");
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn the_main_process_of_each_container_that_mounts_the_volume() {
    let apart = Proc::with(&[
        Seen { pid: 100, name: "pause", started: 90, container: "sandbox", mounts: false, ..Seen::default() },
        Seen { pid: 110, started: 100, ..Seen::default() },
        Seen { pid: 111, parent: 110, started: 100, inner: 7, ..Seen::default() },
        // By `kubectl exec`: its parent is outside, too.
        Seen { pid: 112, name: "sh", started: 200, inner: 30, ..Seen::default() },
        Seen { pid: 120, name: "other", started: 95, container: "c2", ..Seen::default() },
        Seen { pid: 130, name: "sidecar", container: "c3", mounts: false, ..Seen::default() },
        Seen { pid: 140, name: "app", pod: OTHER, ..Seen::default() },
    ]);
    assert_eq!(apart.chosen("signal:HUP"), [110, 120]);
    // With one process namespace for all the first id is that of `pause`.
    let shared = Proc::with(&[
        Seen { pid: 100, name: "pause", started: 90, container: "sandbox", mounts: false, ..Seen::default() },
        Seen { pid: 110, started: 100, inner: 7, ..Seen::default() },
        Seen { pid: 111, parent: 110, started: 100, inner: 8, ..Seen::default() },
        Seen { pid: 120, name: "other", started: 101, inner: 9, container: "c2", ..Seen::default() },
        // Its parent has ended.
        Seen { pid: 121, parent: 100, started: 150, inner: 12, container: "c2", ..Seen::default() },
    ]);
    assert_eq!(shared.chosen("signal:USR1"), [110, 120]);
}

#[test]
fn of_a_server_and_its_workers_the_server() {
    let proc = Proc::with(&[
        Seen { pid: 110, name: "sh", inner: 1, ..Seen::default() },
        Seen { pid: 111, parent: 110, name: "nginx", inner: 7, ..Seen::default() },
        Seen { pid: 112, parent: 111, name: "nginx", inner: 8, ..Seen::default() },
        Seen { pid: 113, parent: 112, name: "nginx", inner: 9, ..Seen::default() },
        Seen { pid: 120, name: "nginx", container: "c2", ..Seen::default() },
        Seen { pid: 130, name: "nginx", container: "c3", mounts: false, ..Seen::default() },
        Seen { pid: 140, name: "nginx", pod: OTHER, ..Seen::default() },
    ]);
    assert_eq!(proc.chosen("signal:HUP@nginx"), [111, 120]);
    assert_eq!(proc.chosen("signal:HUP@ngin"), [0; 0]);
}

#[test]
fn before_a_container_runs_there_is_nobody_and_no_trouble() {
    let proc = Proc::with(&[
        Seen { pid: 100, name: "pause", container: "sandbox", mounts: false, ..Seen::default() },
        Seen { pid: 140, pod: OTHER, ..Seen::default() },
    ]);
    for asked in ["signal:HUP", "signal:HUP@nginx"] {
        assert_eq!(proc.node().send(&order(asked)), Outcome::default(), "{asked}");
    }
}

#[test]
fn a_name_that_nobody_has_is_told_with_those_there_are() {
    let proc = Proc::with(&[
        Seen { pid: 110, name: "nginx", ..Seen::default() },
        Seen { pid: 111, name: "sh", ..Seen::default() },
    ]);
    let problem = "no process ngnix runs in the containers that mount the volume, but nginx, sh";
    assert_eq!(proc.node().send(&order("signal:HUP@ngnix")), Outcome::failed(problem));
}

#[test]
fn helpers_of_the_runtime_and_pods_on_the_nodes_namespace_are_left_alone() {
    let proc = Proc::with(&[Seen { pid: 110, ..Seen::default() }]);
    let status = "NSpid:\t110\nSigBlk:\t0\nSigIgn:\t0\nSigCgt:\t1\n";
    fs::write(proc.directory(110).join("status"), status).unwrap();
    assert_eq!(proc.node().send(&order("signal:HUP")), Outcome::default());
}

#[test]
fn a_process_that_handles_it_is_signalled() {
    let shell = Shell::trapping();
    let proc = Proc::new();
    proc.real(&shell.child, "sh");
    assert_eq!(proc.node().send(&order("signal:HUP@sh")), Outcome { processes: 1, problem: None });
    shell.says("ready\nhup\n");
    assert_eq!(proc.node().send(&order("signal:HUP")), Outcome { processes: 1, problem: None });
    shell.says("ready\nhup\nhup\n");
}

#[test]
fn a_process_that_would_only_end_by_it_is_not() {
    for (script, why) in [
        (
            r#"echo ready >"$0"; while :; do sleep 0.05; done"#,
            "does not handle SIGHUP, which would only end it",
        ),
        (r#"trap '' HUP; echo ready >"$0"; while :; do sleep 0.05; done"#, "ignores SIGHUP"),
    ] {
        let mut shell = Shell::new(script);
        shell.says("ready\n");
        let proc = Proc::new();
        proc.real(&shell.child, "sh");
        let outcome = proc.node().send(&order("signal:HUP"));
        assert_eq!(outcome.processes, 0);
        assert!(outcome.problem.as_deref().is_some_and(|problem| problem.contains(why)), "{outcome:?}");
        assert!(shell.runs());
    }
}

#[test]
fn a_process_that_holds_it_back_for_good_is_signalled() {
    // As with signalfd(2) and sigwait(3): blocked, and taken from there. Its number is that of nobody here.
    let mut shell = Shell::new(r#"echo ready >"$0"; exec sleep 600"#);
    shell.says("ready\n");
    let pid = i32::try_from(shell.child.id()).unwrap();
    let seen = |caught, ignored, blocked| Seen { pid, caught, ignored, blocked, ..Seen::default() };
    let proc = Proc::with(&[seen(0, HUP, HUP)]);
    assert!(proc.node().send(&order("signal:HUP")).problem.is_some(), "what is ignored stays ignored");
    assert!(shell.runs());
    proc.put(&seen(0, 0, HUP));
    assert_eq!(proc.node().send(&order("signal:HUP")), Outcome { processes: 1, problem: None });
    // This one blocks nothing in truth.
    assert!(shell.child.wait().unwrap().code().is_none(), "it ends by the signal");
}

#[test]
fn a_number_that_another_process_has_by_now_is_left_alone() {
    // What was looked at has begun at another time than what is there now.
    let shell = Shell::trapping();
    let pid = i32::try_from(shell.child.id()).unwrap();
    let proc = Proc::with(&[Seen { pid, name: "sh", ..Seen::default() }]);
    let before =
        Process::read(proc.0.path(), Pid::from_raw(pid).unwrap(), &PodUid::parse(POD).unwrap()).unwrap();
    let node = proc.node();
    for now in [
        Seen { pid, name: "sh", started: 101, ..Seen::default() },
        Seen { pid, name: "sh", pod: OTHER, ..Seen::default() },
        Seen { pid, name: "cat", ..Seen::default() },
    ] {
        proc.put(&now);
        let problem = node.signal(&before, &order("signal:HUP@sh")).unwrap_err();
        assert_eq!(problem, "sh (1 in its container) has just ended");
    }
    proc.put(&Seen { pid, name: "sh", ..Seen::default() });
    node.signal(&before, &order("signal:HUP@sh")).unwrap();
    shell.says("ready\nhup\n");
}

#[test]
fn an_order_that_asks_for_more_is_not_taken() {
    let good = String::from_utf8(order("signal:HUP@nginx").written()).unwrap();
    assert_eq!(Order::read(&good), Ok(order("signal:HUP@nginx")));
    let newer = good.replace('{', r#"{"new":1,"#);
    assert_eq!(Order::read(&newer), Ok(order("signal:HUP@nginx")));
    for (from, to) in [
        ("signal:HUP", "signal:KILL"),
        (POD, "../x"),
        (POD, ""),
        ("csi-", "csi"),
        ("{", "["),
        ("on_change", "x"),
    ] {
        assert!(Order::read(&good.replace(from, to)).is_err(), "{from} → {to}");
    }
    assert_eq!(super::send::SENT, [Signal::HUP, Signal::USR1, Signal::USR2].map(Signal::as_raw));
}

#[tokio::test]
async fn driver_and_signaller_understand_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let proc = Proc::with(&[Seen { pid: 110, name: "nginx", ..Seen::default() }]);
    let absent = ask(directory.path(), &order("signal:HUP")).await;
    assert!(absent.problem.is_some_and(|problem| problem.contains("does not run")));
    let listener = sockets::listen(&directory.path().join(SOCKET), Audience::Owner).unwrap();
    let (stop, node) = (CancellationToken::new(), proc.node());
    let asked = async {
        let outcome = ask(directory.path(), &order("signal:HUP@sshd")).await;
        stop.cancel();
        outcome
    };
    let ((), outcome) = tokio::join!(serve(listener, &node, &stop), asked);
    assert_eq!(
        outcome.problem.as_deref(),
        Some("no process sshd runs in the containers that mount the volume, but nginx")
    );
}
