//! `countersign.dev/on-change: signal:…`. The agent reads it to refuse what can't be meant, the driver because it
//! takes nobody else's word for whom it sends what: both with this.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// The key that asks for it.
pub const ON_CHANGE: &str = "countersign.dev/on-change";
/// What every request for a signal begins with.
pub const PREFIX: &str = "signal:";
/// Bytes of a process's name that Linux keeps (`TASK_COMM_LEN` less the zero at its end).
const KEPT: usize = 15;
/// Longest name of a process.
const LONGEST: usize = 64;

/// A signal that may be sent: one by which a program is told something. None that ends or stops a program, for all
/// replicas of a workload would end at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    /// SIGHUP: for most, read the configuration again.
    Hup,
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    Usr2,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Hup, Self::Usr1, Self::Usr2];

    /// Its name without `SIG`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hup => "HUP",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
        }
    }
}

impl Display for Signal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "SIG{}", self.name())
    }
}

/// A process's name as Linux has it (`ps -o comm`): that of its executable or script, unless it gave itself another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessName(String);

impl ProcessName {
    /// Whether a process of this name is meant. Linux keeps the first 15 bytes.
    #[must_use]
    pub fn is(&self, comm: &str) -> bool {
        let bytes = self.0.as_bytes();
        bytes.get(..KEPT).unwrap_or(bytes) == comm.as_bytes()
    }
}

impl Display for ProcessName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which signal, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SignalTarget {
    /// The signal.
    pub signal: Signal,
    /// The topmost processes of this name; none: the main process of each container.
    pub process: Option<ProcessName>,
}

/// Why a text asks for no signal that may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalProblem {
    /// It does not begin with `signal:`.
    Prefix,
    /// No signal that is sent.
    Signal,
    /// One that ends or stops a program.
    Fatal,
    /// No name of a process after the `@`.
    Process,
}

impl Display for SignalProblem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefix | Self::Signal => {
                "write signal:HUP, signal:USR1 or signal:USR2, with @<process> after it or not, such as \
                 signal:HUP@nginx"
            }
            Self::Fatal => {
                "signals that end or stop a program are not sent, for all replicas would end at the same moment; \
                 write signal:HUP, signal:USR1 or signal:USR2"
            }
            Self::Process => {
                "after @ comes the name of a process as ps -o comm shows it, such as signal:HUP@nginx: 1 to 64 \
                 printable ASCII characters without / and @"
            }
        })
    }
}

impl std::error::Error for SignalProblem {}

impl FromStr for SignalTarget {
    type Err = SignalProblem;

    fn from_str(text: &str) -> Result<Self, SignalProblem> {
        let asked = text.strip_prefix(PREFIX).ok_or(SignalProblem::Prefix)?;
        let (name, process) = match asked.split_once('@') {
            Some((name, process)) => (name, Some(process)),
            None => (asked, None),
        };
        let signal = Signal::ALL.into_iter().find(|signal| signal.name() == name).ok_or(
            match name.strip_prefix("SIG").unwrap_or(name) {
                "INT" | "KILL" | "QUIT" | "STOP" | "TERM" => SignalProblem::Fatal,
                _ => SignalProblem::Signal,
            },
        )?;
        let process = process
            .map(|name| {
                let legal = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'@');
                let fits = (1..=LONGEST).contains(&name.len()) && name.bytes().all(legal);
                fits.then(|| ProcessName(name.to_owned())).ok_or(SignalProblem::Process)
            })
            .transpose()?;
        Ok(Self { signal, process })
    }
}

/// As it is written.
impl Display for SignalTarget {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.signal.name())?;
        self.process.iter().try_for_each(|process| write!(f, "@{process}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_and_whom_it_is_for() {
        for text in [
            "signal:HUP",
            "signal:USR1",
            "signal:USR2@postgres",
            "signal:HUP@my-long-named-server",
            "signal:HUP@a:b",
        ] {
            assert_eq!(text.parse::<SignalTarget>().unwrap().to_string(), text);
        }
        let read: SignalTarget = "signal:HUP@nginx".parse().unwrap();
        assert_eq!((read.signal, read.signal.to_string().as_str()), (Signal::Hup, "SIGHUP"));
        let process = read.process.unwrap();
        assert!(process.is("nginx") && !process.is("nginx2") && !process.is("ngin"));
        let long: SignalTarget = "signal:HUP@my-long-named-server".parse().unwrap();
        assert!(
            long.process.is_some_and(|name| name.is("my-long-named-s") && !name.is("my-long-named-server"))
        );
    }

    #[test]
    fn what_is_never_sent() {
        for (text, problem) in [
            ("post:80/", SignalProblem::Prefix),
            ("signal", SignalProblem::Prefix),
            ("signal:", SignalProblem::Signal),
            ("signal:hup", SignalProblem::Signal),
            ("signal:SIGHUP", SignalProblem::Signal),
            ("signal:1", SignalProblem::Signal),
            ("signal:HUP ", SignalProblem::Signal),
            ("signal:nginx:HUP", SignalProblem::Signal),
            ("signal:KILL", SignalProblem::Fatal),
            ("signal:SIGTERM@nginx", SignalProblem::Fatal),
            ("signal:STOP", SignalProblem::Fatal),
            ("signal:HUP@", SignalProblem::Process),
            ("signal:HUP@a b", SignalProblem::Process),
            ("signal:HUP@/usr/sbin/nginx", SignalProblem::Process),
            ("signal:HUP@nginx@other", SignalProblem::Process),
        ] {
            assert_eq!(text.parse::<SignalTarget>(), Err(problem), "{text}");
        }
        assert!(format!("signal:HUP@{}", "a".repeat(65)).parse::<SignalTarget>().is_err());
    }
}
