//! Who read what: one line for each question to a store, with the store's own name for the request, by which the
//! store's audit log has the other half of it. Names of fields, never a value.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::identity::{Identity, JwtSvid, Push, Roots, Standing, Subscription, Token, Workload};
use crate::log::AUDIT;
use crate::secret::Node;
use crate::sources::{Ask, Sources, Stale};
use crate::store::{Answer, Fetched, Held};

/// How many names of fields a line has.
const LISTED: usize = 32;

/// Sources whose every read leaves a line.
#[derive(Debug)]
pub struct Audited<S>(pub S);

impl<S: Sources> Sources for Audited<S> {
    async fn x509(
        &self,
        workload: &Workload,
        tokens: &[Token],
        current: Option<&Identity>,
    ) -> Result<Identity, Error> {
        self.0.x509(workload, tokens, current).await
    }

    async fn jwt(
        &self,
        workload: &Workload,
        tokens: &[Token],
        identity: &Identity,
        audience: &str,
    ) -> Result<JwtSvid, Error> {
        self.0.jwt(workload, tokens, identity, audience).await
    }

    async fn fetch(&self, ask: Ask<'_>, held: &mut Option<Held>) -> Result<Answer, Error> {
        let result = self.0.fetch(ask, held).await;
        match &result {
            Ok(Answer::Secret(fetched)) => line(&ask, "ok", Some(fetched)),
            // Nothing was read.
            Ok(Answer::Kept(_) | Answer::Apart) => {}
            Err(error) => line(&ask, error.label(), None),
        }
        result
    }

    fn hint(&self, store: &str) -> Option<Arc<str>> {
        self.0.hint(store)
    }

    fn subscribe(&self, workload: &Workload) -> Subscription {
        self.0.subscribe(workload)
    }

    async fn changed(&self) -> Push {
        self.0.changed().await
    }

    async fn stale(&self) -> Stale {
        self.0.stale().await
    }

    async fn run(&self, shutdown: &CancellationToken) {
        self.0.run(shutdown).await;
    }

    fn reached(&self) -> Result<(), String> {
        self.0.reached()
    }

    fn replicas(&self) -> Option<Standing> {
        self.0.replicas()
    }

    fn roots(&self) -> Option<watch::Receiver<Roots>> {
        self.0.roots()
    }
}

fn line(ask: &Ask<'_>, result: &str, fetched: Option<&Fetched>) {
    tracing::info!(
        target: AUDIT,
        spiffe_id = %ask.caller.identity.spiffe_id,
        pod = %ask.caller.workload,
        pod_uid = ask.caller.workload.pod_uid,
        store = &*ask.source.store,
        path = &*ask.source.path,
        fields = fetched.map(|fetched| fields(&fetched.document)),
        version = fetched.map(|fetched| fetched.version.as_str()),
        result,
        request_id = fetched.and_then(|fetched| fetched.request_id.as_deref()),
    );
}

/// The names at the top, as far as they fit.
fn fields(document: &Node) -> String {
    let Node::Map(members) = document else { return String::new() };
    let shown = |name: &String| name.chars().filter(|c| !c.is_control()).take(64).collect::<String>();
    let names: Vec<String> = members.keys().take(LISTED).map(shown).collect();
    let more = if members.len() > LISTED { ",…" } else { "" };
    format!("{}{more}", names.join(","))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt;

    use super::*;
    use crate::request::Source;
    use crate::testing::{FakeSources, caller, identity};

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_line_for_each_read() {
        let paper = Paper::default();
        let to = paper.clone();
        let subscriber = fmt().json().flatten_event(true).with_writer(move || to.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let sources = FakeSources::default();
        sources.put("a", "hunter2");
        let (audited, me) = (Audited(sources), identity("spiffe://t/ns/n/sa/a"));
        for path in ["a", "b"] {
            let source =
                Source { store: "s".into(), path: path.into(), version: None, options: BTreeMap::new() };
            let ask = Ask { caller: caller(&me), source: &source, alone: false };
            drop(audited.fetch(ask, &mut None).await);
        }
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        for (line, path, result) in [(&lines[0], "a", "ok"), (&lines[1], "b", "not_found")] {
            assert_eq!(
                (line["target"].as_str(), line["spiffe_id"].as_str(), line["pod"].as_str()),
                (Some(AUDIT), Some("spiffe://t/ns/n/sa/a"), Some("n/p"))
            );
            assert_eq!((line["path"].as_str(), line["result"].as_str()), (Some(path), Some(result)));
        }
        assert!(!lines[0]["version"].is_null());
    }

    #[test]
    fn names_of_fields() {
        let map =
            |names: &[&str]| Node::Map(names.iter().map(|name| ((*name).to_owned(), Node::Null)).collect());
        assert_eq!(fields(&map(&["b", "a\u{7}"])), "a,b");
        assert_eq!(fields(&Node::Null), "");
        let many: Vec<String> = (0..40).map(|n| format!("{n:02}")).collect();
        assert!(fields(&map(&many.iter().map(String::as_str).collect::<Vec<_>>())).ends_with("31,…"));
    }
}
