//! Whom to tell when files have changed.

use std::fmt;
use std::num::NonZeroU16;

use countersign_proto::signal::{PREFIX, SignalTarget};

use super::Problem;

/// The longest path, in bytes.
const MAX_PATH: usize = 256;

/// How the pod is told after its files have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnChange {
    /// By an HTTP request of the agent's.
    Post(Post),
    /// By a signal, which the driver has sent: it reads the request itself, and the agent says only that it is time.
    Signal(SignalTarget),
}

/// An HTTP POST to a port of the pod itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// The port, at the pod's own address.
    pub port: NonZeroU16,
    /// The path, and a query if any; it begins with a slash.
    pub path: String,
}

impl OnChange {
    /// Reads `post:<port>/<path>` or `signal:<signal>[@<process>]`.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        if text.starts_with(PREFIX) {
            return text.parse().map(Self::Signal).map_err(|problem| Problem::new(problem.to_string()));
        }
        let Some(target) = text.strip_prefix("post:") else {
            return Err(Problem::new(
                "write post:<port>/<path>, such as post:8080/-/reload, or signal:<signal>@<process>, such as \
                 signal:HUP@nginx",
            ));
        };
        let (port, path) = target.find('/').map_or((target, "/"), |slash| target.split_at(slash));
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits).ok_or_else(|| {
            Problem::new(
                "no port from 1 to 65535 after post:; write one of the pod's own, such as post:8080/-/reload",
            )
        })?;
        let legal = |b: u8| {
            b.is_ascii_graphic()
                && !matches!(b, b'#' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
        };
        if path.len() > MAX_PATH || !path.bytes().all(legal) {
            return Err(Problem::new(format!(
                "the path must have at most {MAX_PATH} printable ASCII characters that a URL may have, and no #"
            )));
        }
        Ok(Self::Post(Post { port, path: path.to_owned() }))
    }
}

/// As it is written.
impl fmt::Display for OnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Post(Post { port, path }) => write!(f, "post:{port}{path}"),
            Self::Signal(target) => target.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_and_a_path() {
        for (text, port, path) in [
            ("post:8080/-/reload", 8080, "/-/reload"),
            ("post:1", 1, "/"),
            ("post:65535/a?b=c%20d", 65535, "/a?b=c%20d"),
            ("post:80//evil.example/x", 80, "//evil.example/x"),
        ] {
            let read = OnChange::parse(text).unwrap();
            let expected = Post { port: NonZeroU16::new(port).unwrap(), path: path.to_owned() };
            assert_eq!(read, OnChange::Post(expected), "{text}");
        }
    }

    #[test]
    fn a_signal() {
        for text in ["signal:HUP", "signal:USR1@nginx"] {
            let read = OnChange::parse(text).unwrap();
            assert!(matches!(read, OnChange::Signal(_)) && read.to_string() == text, "{read}");
        }
    }

    #[test]
    fn what_names_another_place_or_none() {
        for (text, part) in [
            ("", "write post:<port>/<path>"),
            ("http://10.0.0.1:80/", "write post:<port>/<path>"),
            ("signal", "write post:<port>/<path>"),
            ("signal:nginx:HUP", "write signal:HUP"),
            ("signal:TERM", "signals that end or stop a program are not sent"),
            ("signal:HUP@", "after @ comes the name of a process"),
            ("post:", "no port from 1 to 65535"),
            ("post:/x", "no port from 1 to 65535"),
            ("post:0/x", "no port from 1 to 65535"),
            ("post:65536/x", "no port from 1 to 65535"),
            ("post:+80/x", "no port from 1 to 65535"),
            ("post:10.0.0.1:80/x", "no port from 1 to 65535"),
            ("post:80@evil/x", "no port from 1 to 65535"),
            ("post:80/a b", "printable ASCII"),
            ("post:80/a\r\nX: y", "printable ASCII"),
            ("post:80/a#b", "printable ASCII"),
        ] {
            let problem = OnChange::parse(text).unwrap_err().to_string();
            assert!(problem.contains(part), "{text}: {problem}");
        }
        assert!(OnChange::parse(&format!("post:80/{}", "a".repeat(256))).is_err());
    }
}
