//! What the stores answered last, on a socket of this node: whoever may open it reads one JSON list and is done. Names,
//! versions and times, never a value. `explain` shows it beside what a pod asks for.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::cache::{Answered, Cache};
use crate::service::bound_listener;

/// The socket's name in the directory shared with the driver. It is the agent's own to open, and root's.
pub const SOCKET: &str = "answers.sock";
/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Wait before the next connection is accepted when one could not be: out of descriptors, most likely.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest list that is read.
const MOST: u64 = 64 << 20;

/// Serves the list at `path` until `shutdown`, to one reader after the other. No reader, and no want of descriptors for
/// one, ends it: pods' files do not depend on who looks.
///
/// # Errors
/// The socket cannot be made.
pub async fn serve(cache: &Cache, path: &Path, shutdown: CancellationToken) -> io::Result<()> {
    let listener = bound_listener(path)?;
    loop {
        let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await else { return Ok(()) };
        let mut reader = match accepted {
            Ok((reader, _)) => reader,
            Err(error) => {
                debug!(%error, "a reader of the last answers could not be accepted");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let list = serde_json::to_vec(&cache.answered())?;
        match tokio::time::timeout(PATIENCE, reader.write_all(&list)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a reader of the last answers went away"),
            Err(_) => debug!("a reader of the last answers does not read"),
        }
    }
}

/// The list of the agent that serves `path`.
///
/// # Errors
/// Nobody serves there, or it is no list.
pub fn ask(path: &Path) -> io::Result<Vec<Answered>> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut list = Vec::new();
    stream.take(MOST).read_to_end(&mut list)?;
    Ok(serde_json::from_slice(&list)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Error;
    use crate::clock::Clock;
    use crate::request::Source;
    use crate::testing::{FakeSources, caller, identity};
    use crate::volume::VolumeId;

    #[tokio::test]
    async fn names_and_times_and_no_value() {
        let (cache, sources, me) =
            (Cache::new(Clock::system()), FakeSources::default(), identity("spiffe://t/ns/n/sa/a"));
        sources.put("a", "hunter2");
        let source = |path: &str, options: &[(&str, &str)]| Source {
            store: "s".into(),
            path: path.into(),
            version: None,
            options: options
                .iter()
                .map(|&(name, value)| (name.into(), value.into()))
                .collect::<BTreeMap<_, _>>(),
        };
        let mut held = Vec::new();
        for source in [source("a", &[("x", "y"), ("z", "w")]), source("gone", &[])] {
            let entry = cache.entry(&me.spiffe_id, &source);
            let volume = VolumeId::from("v");
            held.push(cache.look_for(&volume, &sources, entry, caller(&me), PATIENCE).await);
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET);
        let shutdown = CancellationToken::new();
        let reading = async {
            let at = path.clone();
            let list = tokio::task::spawn_blocking(move || {
                loop {
                    match ask(&at) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => std::thread::yield_now(),
                        answer => return answer.unwrap(),
                    }
                }
            });
            let list = list.await.unwrap();
            shutdown.cancel();
            list
        };
        let (served, list) = tokio::join!(serve(&cache, &path, shutdown.clone()), reading);
        served.unwrap();
        assert_eq!(list.len(), 2);
        let (good, bad) = (&list[0], &list[1]);
        assert_eq!(
            (good.question.as_str(), good.spiffe_id.as_str()),
            ("s:a?x=y&z=w", "spiffe://t/ns/n/sa/a")
        );
        assert_eq!((&good.trouble, good.seconds_ago), (&None, Some(0)));
        assert_eq!((bad.question.as_str(), &bad.version), ("s:gone", &None));
        let trouble = Error::NotFound { reference: "s:gone".into(), problem: "no such secret".into() };
        assert_eq!(bad.trouble, Some(trouble.to_string()));
        assert!(bad.to_string().starts_with("NO: ") && bad.to_string().contains("no such secret"), "{bad}");
        assert!(cache.answered().iter().all(|known| known.volume.is_none()));
    }
}
