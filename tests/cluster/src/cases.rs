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

/// Which cases are run at all, by `COUNTERSIGN_CASES`: `older` has those that are marked so. All without it.
fn chosen<W>(cases: Vec<Case<W>>) -> Result<Vec<Case<W>>> {
    match std::env::var(CHOICE).as_deref() {
        Err(_) | Ok("") => Ok(cases),
        Ok("older") => {
            let (chosen, left): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.older);
            tell(&format!("{CHOICE}=older: {} cases of {}", chosen.len(), chosen.len() + left.len()));
            Ok(chosen)
        }
        Ok(other) => bail!("{CHOICE}={other}: there is `older`, and all without it"),
    }
}

/// Lists the cases, where the arguments ask for that: no world is needed for it.
pub fn listed<W>(arguments: &Arguments, cases: &[Case<W>]) -> Option<ExitCode> {
    arguments.list.then(|| {
        let trials = cases.iter().map(|case| Trial::test(case.name, || Ok(())));
        libtest_mimic::run(arguments, trials.collect()).exit_code()
    })
}

/// Runs the cases as the standard harness would. Without a node in hand those that need one are ignored, and that is
/// said.
pub fn run<W: Send + Sync + 'static>(
    mut arguments: Arguments,
    cases: Vec<Case<W>>,
    world: &Arc<W>,
    node: bool,
) -> Result<Conclusion> {
    let cases = chosen(cases)?;
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
    Ok(conclusion)
}

/// Says something to who runs the cases.
#[expect(clippy::print_stderr, reason = "a test harness speaks to who runs it")]
pub fn tell(text: &str) {
    eprintln!("{text}");
}
