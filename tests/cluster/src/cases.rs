//! Cases that share one world: harmless ones side by side, the others alone.

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tokio::sync::RwLock;
use tokio::time::timeout;

/// No case takes longer than this unless something hangs.
const LIMIT: Duration = Duration::from_secs(300);
/// How many harmless cases run at once.
const PARALLEL: usize = 6;
/// Chooses among the cases.
const CHOICE: &str = "COUNTERSIGN_CASES";

/// What a case does to others, and what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Looks after itself; on every cluster.
    Harmless,
    /// Disturbs others, and runs alone; on every cluster.
    Alone,
    /// Needs the node itself in hand; runs alone.
    Node,
}

type Body<W> = dyn FnOnce(Arc<W>, &RwLock<()>) -> Result<()> + Send;

/// One test case in a world `W`.
pub struct Case<W> {
    name: &'static str,
    kind: Kind,
    older: bool,
    run: Box<Body<W>>,
}

/// A case that runs a future on a runtime of its own.
pub fn case<W: 'static, F: Future<Output = Result<()>>>(
    name: &'static str,
    kind: Kind,
    body: impl FnOnce(Arc<W>) -> F + Send + 'static,
) -> Case<W> {
    let run = move |world: Arc<W>, order: &RwLock<()>| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(async {
            let limited = async {
                timeout(LIMIT, body(world)).await.with_context(|| format!("not done within {LIMIT:?}"))?
            };
            if kind == Kind::Harmless {
                let _others_too = order.read().await;
                limited.await
            } else {
                let _alone = order.write().await;
                limited.await
            }
        })
    };
    Case { name, kind, older: false, run: Box::new(run) }
}

impl<W> Case<W> {
    /// Belongs to the few that are tried on an older Kubernetes with every change: what depends on what Kubernetes
    /// knows, and what a user has first.
    #[must_use]
    pub fn on_older(self) -> Self {
        Self { older: true, ..self }
    }
}

/// What there is to do.
pub enum Planned<W> {
    /// These cases are to be run.
    Cases(Vec<Case<W>>),
    /// It is done: nothing is left to run.
    Ended(ExitCode),
}

/// Chooses the cases, and lists them where the arguments ask for that. Before there is a world for them: who has
/// misspelt his choice is not to wait for one.
pub fn planned<W>(arguments: &Arguments, cases: Vec<Case<W>>) -> Result<Planned<W>> {
    let set = std::env::var(CHOICE).unwrap_or_default();
    let cases: Vec<_> = named(&set, cases)?.into_iter().filter(|case| wanted(arguments, case.name)).collect();
    if arguments.list {
        let trials = cases.iter().map(|case| Trial::test(case.name, || Ok(())));
        return Ok(Planned::Ended(libtest_mimic::run(arguments, trials.collect()).exit_code()));
    }
    if cases.is_empty() {
        tell("no case of this suite has that name: nothing is started for it");
        return Ok(Planned::Ended(ExitCode::SUCCESS));
    }
    Ok(Planned::Cases(cases))
}

/// The cases of a set: `older` has those that are marked so, and the set without a name all.
fn named<W>(set: &str, cases: Vec<Case<W>>) -> Result<Vec<Case<W>>> {
    match set {
        "" => Ok(cases),
        "older" => Ok(cases.into_iter().filter(|case| case.older).collect()),
        other => bail!("{CHOICE}={other}: there is `older`, and all without it"),
    }
}

/// Whether the arguments leave a case in, as the standard harness has it.
fn wanted(arguments: &Arguments, name: &str) -> bool {
    let fits = |text: &String| if arguments.exact { name == text } else { name.contains(text.as_str()) };
    arguments.filter.as_ref().is_none_or(fits) && !arguments.skip.iter().any(fits)
}

/// Runs the cases as the standard harness would. Without a node in hand those that need one are ignored, and that is
/// said.
pub fn run<W: Send + Sync + 'static>(
    mut arguments: Arguments,
    cases: Vec<Case<W>>,
    world: &Arc<W>,
    node: bool,
) -> Conclusion {
    if let Some(set) = std::env::var(CHOICE).ok().filter(|set| !set.is_empty()) {
        tell(&format!("{CHOICE}={set}: {} cases", cases.len()));
    }
    arguments.test_threads = arguments.test_threads.or(Some(PARALLEL));
    let order = Arc::new(RwLock::new(()));
    let lacking = cases.iter().filter(|case| case.kind == Kind::Node && !node).count();
    let trials = cases.into_iter().map(|case| {
        let (world, order, run) = (Arc::clone(world), Arc::clone(&order), case.run);
        let ignored = case.kind == Kind::Node && !node;
        Trial::test(case.name, move || run(world, &order).map_err(|error| Failed::from(format!("{error:#}"))))
            .with_ignored_flag(ignored)
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if lacking > 0 {
        tell(&format!("{lacking} cases are ignored: they need a node in hand; `make cluster-test` has one"));
    }
    conclusion
}

/// Says something to who runs the cases.
#[expect(clippy::print_stderr, reason = "a test harness speaks to who runs it")]
pub fn tell(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(words: &[&str]) -> Arguments {
        Arguments::from_iter(["suite"].iter().chain(words))
    }

    fn cases() -> Vec<Case<()>> {
        let case = |name| case(name, Kind::Harmless, async |_| Ok(()));
        vec![case("pod_starts").on_older(), case("pod_waits")]
    }

    #[test]
    fn a_set_is_known_or_refused() {
        let names =
            |set| named(set, cases()).map(|cases| cases.iter().map(|case| case.name).collect::<Vec<_>>());
        assert_eq!(names("").unwrap(), ["pod_starts", "pod_waits"]);
        assert_eq!(names("older").unwrap(), ["pod_starts"]);
        let error = names("odler").unwrap_err().to_string();
        assert!(error.contains("COUNTERSIGN_CASES=odler"), "{error}");
    }

    #[test]
    fn without_a_case_there_is_nothing_to_start_a_world_for() {
        let left = |words: &[&str]| match planned(&arguments(words), cases()).unwrap() {
            Planned::Cases(cases) => cases.len(),
            Planned::Ended(_) => 0,
        };
        assert_eq!(left(&[]), 2);
        assert_eq!(left(&["pod_"]), 2);
        assert_eq!(left(&["starts"]), 1);
        assert_eq!(left(&["strats"]), 0);
        assert_eq!(left(&["pod_", "--exact"]), 0);
        assert_eq!(left(&["--skip", "waits"]), 1);
        assert_eq!(left(&["--list"]), 0);
    }
}
