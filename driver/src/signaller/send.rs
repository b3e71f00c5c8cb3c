//! Sending: to the process that was looked at, and to no other that has its number since.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use countersign_proto::signal::Signal;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::signaller::choose::choose;
use crate::signaller::proc::{Manner, Process};
use crate::signaller::wire::{Order, Outcome};

/// The numbers of all signals that are ever sent.
pub(super) const SENT: [i32; 3] = [
    rustix::process::Signal::HUP.as_raw(),
    rustix::process::Signal::USR1.as_raw(),
    rustix::process::Signal::USR2.as_raw(),
];
/// Signals are held back for a moment whenever a thread or a process is made, and by shells all the time: only who
/// holds them back in each of so many looks, so far apart, means it.
const LOOKS: (u32, Duration) = (5, Duration::from_millis(20));
/// Names of processes that a problem tells at most.
const NAMED: usize = 8;

/// The number of a signal.
pub(super) const fn number(signal: Signal) -> rustix::process::Signal {
    match signal {
        Signal::Hup => rustix::process::Signal::HUP,
        Signal::Usr1 => rustix::process::Signal::USR1,
        Signal::Usr2 => rustix::process::Signal::USR2,
    }
}

/// The processes of this node.
#[derive(Debug)]
pub(super) struct Node {
    /// Where they are seen.
    pub(super) proc: PathBuf,
}

/// Why a process did not get its signal, for people.
type Reason = String;

impl Node {
    /// Carries out an order.
    pub(super) fn send(&self, order: &Order) -> Outcome {
        let all = match Process::all(&self.proc, &order.pod) {
            Ok(all) => all,
            Err(error) => return Outcome::failed(format!("the node's processes can't be read: {error}")),
        };
        let see = |process: &&Process| process.sees(&self.proc, order.volume);
        let chosen: Vec<&Process> = choose(&all, &order.target).into_iter().filter(see).collect();
        if chosen.is_empty() {
            let others: BTreeSet<&str> =
                all.iter().filter(see).map(|process| process.name.as_str()).collect();
            return match &order.target.process {
                Some(name) if !others.is_empty() => Outcome::failed(format!(
                    "no process {name} runs in the containers that mount the volume, but {}",
                    others.into_iter().take(NAMED).collect::<Vec<_>>().join(", ")
                )),
                // Nobody has read anything yet: who starts now reads what is new.
                _ => Outcome::default(),
            };
        }
        let sent: Vec<Result<(), Reason>> =
            chosen.into_iter().map(|process| self.signal(process, order)).collect();
        let processes = u32::try_from(sent.iter().filter(|sent| sent.is_ok()).count()).unwrap_or(u32::MAX);
        if processes > 0 {
            return Outcome { processes, problem: None };
        }
        let mut reasons: Vec<Reason> = sent.into_iter().filter_map(Result::err).collect();
        reasons.dedup();
        reasons.truncate(NAMED);
        Outcome::failed(reasons.join("; "))
    }

    /// Signals one process, if it is ready for it: what would only end it is not sent.
    pub(super) fn signal(&self, process: &Process, order: &Order) -> Result<(), Reason> {
        let signal = order.target.signal;
        let (name, inner) = (&process.name, process.inner);
        let gone = || format!("{name} ({inner} in its container) has just ended");
        // From here on the descriptor means this process, whoever gets the number next.
        let pidfd = match pidfd_open(process.pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Err(gone()),
            Err(errno) => return Err(format!("{name} can't be held on to: {errno}")),
        };
        let look = || {
            let now = Process::read(&self.proc, process.pid, &order.pod)
                .filter(|now| now.started == process.started);
            let meant = |now: &Process| order.target.process.as_ref().is_none_or(|name| name.is(&now.name));
            now.filter(meant).ok_or_else(gone)
        };
        let mut manner = look()?.manner(signal);
        for _ in 0..LOOKS.0 {
            if manner == Manner::Blocks {
                std::thread::sleep(LOOKS.1);
                manner = look()?.manner(signal);
            }
        }
        match manner {
            Manner::Handles | Manner::Blocks => {}
            Manner::Ignores => return Err(format!("{name} ({inner} in its container) ignores {signal}")),
            Manner::Ends => {
                return Err(format!(
                    "{name} ({inner} in its container) does not handle {signal}, which would only end it"
                ));
            }
        }
        pidfd_send_signal(&pidfd, number(signal)).map_err(|errno| match errno {
            Errno::SRCH => gone(),
            errno => {
                format!("the kernel lets no {signal} through to {name} ({inner} in its container): {errno}")
            }
        })
    }
}
