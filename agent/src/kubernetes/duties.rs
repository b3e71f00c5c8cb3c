//! What an agent does in its cluster beside filling volumes: events on pods, and the startup taint of its node.

use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::kubernetes::events::{Events, Recorder};
use crate::kubernetes::pods::Pods;
use crate::kubernetes::taint::StartupTaint;
use crate::kubernetes::{Api, ApiArgs, Caller};
use crate::metrics::Metrics;
use crate::notify::{Notices, Notifier, Posts, Signals};

/// Flags for what needs the API server and is not needed for filling volumes.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// Name of this node, as its Node object has it
    #[arg(long, env = "COUNTERSIGN_NODE_NAME", default_value = "")]
    pub node_name: String,
    /// Tell of refreshes that fail and identities that end by events on their pods
    #[arg(long, env = "COUNTERSIGN_EVENTS")]
    pub events: bool,
    /// Call pods that ask for it when their files have changed (`countersign.dev/on-change`); pods are read for that
    #[arg(long, env = "COUNTERSIGN_ON_CHANGE", requires = "node_name")]
    pub on_change: bool,
    /// Key of the taint to remove from this node once kubelet has registered the driver
    #[arg(long, env = "COUNTERSIGN_STARTUP_TAINT", requires = "node_name")]
    pub startup_taint: Option<String>,
    /// Name of the CSI driver that has to be registered for that
    #[arg(long, env = "COUNTERSIGN_DRIVER_NAME", default_value = "csi.countersign.dev")]
    pub driver_name: String,
}

/// The duties of one agent; none of them ever stops it.
#[derive(Debug)]
pub struct Duties {
    /// Where to tell of pods.
    pub recorder: Recorder,
    /// Where to tell pods themselves.
    pub notifier: Notifier,
    /// Whether pods are called when their files have changed.
    pub calls: bool,
    events: Option<Events>,
    notices: Notices,
    taint: Option<StartupTaint>,
}

impl Duties {
    /// The duties that were asked for.
    pub fn new(
        args: &ClusterArgs,
        api: &ApiArgs,
        metrics: &Arc<Metrics>,
        clock: Clock,
        signals: Signals,
    ) -> anyhow::Result<Self> {
        let taint = args.startup_taint.as_deref().filter(|taint| !taint.is_empty());
        let needed_by = match (args.events, args.on_change, taint) {
            (true, _, _) => "--events",
            (false, true, _) => "--on-change",
            (false, false, Some(_)) => "--startup-taint",
            (false, false, None) => {
                let recorder = Recorder::off();
                let (notices, notifier) = Notices::new(None, signals, Arc::clone(metrics), recorder.clone());
                return Ok(Self { recorder, notifier, calls: false, events: None, notices, taint: None });
            }
        };
        let server =
            api.server(needed_by).map_err(|problem| anyhow::anyhow!("--kubernetes-url: {problem}"))?;
        let api = Arc::new(Api::new(server, Caller::Agent, clock));
        let taint = taint
            .map(|taint| {
                let (taint, driver) = (taint.to_owned(), args.driver_name.clone());
                StartupTaint::new(Arc::clone(&api), &args.node_name, taint, driver)
                    .context("--node-name: must be the name of this node for --startup-taint")
            })
            .transpose()?;
        let (events, recorder) = if args.events {
            let (events, recorder) = Events::new(Arc::clone(&api), args.node_name.clone());
            (Some(events), recorder)
        } else {
            (None, Recorder::off())
        };
        let posts = args.on_change.then(|| Posts::new(Pods::new(api, args.node_name.clone())));
        let (notices, notifier) = Notices::new(posts, signals, Arc::clone(metrics), recorder.clone());
        Ok(Self { recorder, notifier, calls: args.on_change, events, notices, taint })
    }

    /// Does them until `shutdown`.
    pub async fn run(self, shutdown: &CancellationToken) {
        let Self { recorder: _, notifier: _, calls: _, events, notices, taint } = self;
        tokio::join!(
            async {
                if let Some(events) = events {
                    events.run(shutdown).await;
                }
            },
            notices.run(shutdown),
            async {
                if let Some(taint) = taint {
                    taint.run(shutdown).await;
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        api: ApiArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    }

    fn duties(flags: &[&str]) -> Result<(bool, bool), String> {
        let line = Line::try_parse_from(["agent"].iter().chain(flags)).map_err(|error| error.to_string())?;
        let duties =
            Duties::new(&line.cluster, &line.api, &Arc::default(), Clock::system(), Signals::default());
        duties
            .map(|duties| (duties.events.is_some(), duties.taint.is_some()))
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn only_what_was_asked_for_and_only_with_an_api_server() {
        let url = "--kubernetes-url=https://10.0.0.1";
        let taint = "--startup-taint=countersign.dev/agent-not-ready";
        assert_eq!(duties(&[]), Ok((false, false)));
        assert_eq!(duties(&[url, "--events"]), Ok((true, false)));
        assert_eq!(duties(&[url, taint, "--node-name=n1"]), Ok((false, true)));
        for (flags, why) in [
            (vec!["--events"], "--kubernetes-url: is needed outside a pod with --events"),
            (vec!["--on-change", "--node-name=n1"], "is needed outside a pod with --on-change"),
            (vec!["--on-change", url], "--node-name"),
            (vec![url, taint, "--node-name=N/1"], "--node-name: must be the name of this node"),
            (vec!["--kubernetes-url=http://10.0.0.1", "--events"], "must be https://HOST:PORT"),
        ] {
            let error = duties(&flags).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
