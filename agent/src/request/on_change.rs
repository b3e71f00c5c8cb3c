//! Whom to tell when files have changed.

use std::num::NonZeroU16;

use super::Problem;

/// The longest path, in bytes.
const MAX_PATH: usize = 256;

/// An HTTP POST to a port of the pod itself, after its files have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnChange {
    /// The port, at the pod's own address.
    pub port: NonZeroU16,
    /// The path, and a query if any; it begins with a slash.
    pub path: String,
}

impl OnChange {
    /// Reads `post:<port>/<path>`.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let Some(target) = text.strip_prefix("post:") else {
            return Err(Problem::new(if text.starts_with("signal") {
                "signals are not sent, for that would cost the agent the power to end any process of its node; write post:<port>/<path>, or watch the volume with inotify"
            } else {
                "write post:<port>/<path>, such as post:8080/-/reload"
            }));
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
        Ok(Self { port, path: path.to_owned() })
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
            assert_eq!((read.port.get(), read.path.as_str()), (port, path), "{text}");
        }
    }

    #[test]
    fn what_names_another_place_or_none() {
        for (text, part) in [
            ("", "write post:<port>/<path>"),
            ("http://10.0.0.1:80/", "write post:<port>/<path>"),
            ("signal:nginx:HUP", "signals are not sent"),
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
