//! Runs test cases that need something of the machine: what it can't give is reported as ignored, with the reason
//! and the number. The standard harness cannot do that while running.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::time::timeout;

use crate::mount::{self, Namespace, REMEDY};

/// No case takes longer than this unless something hangs.
const LIMIT: Duration = Duration::from_secs(180);
/// Demands mounts: set to anything.
const REQUIRE: &str = "COUNTERSIGN_REQUIRE_MOUNTS";

/// What a case needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing that a machine may lack.
    Nothing,
    /// Mounts, by root or in a user namespace.
    Mounts,
    /// Mounts and more than one uid: root.
    Root,
}

impl Needs {
    fn met(self, namespace: &Namespace) -> bool {
        match self {
            Self::Nothing => true,
            Self::Mounts => namespace.mounts(),
            Self::Root => *namespace == Namespace::Root,
        }
    }
}

/// One test case.
pub struct Case {
    name: &'static str,
    needs: Needs,
    run: Box<dyn FnOnce() -> Result<()> + Send>,
}

/// A case that runs a future on a runtime of its own.
pub fn case<F: Future<Output = Result<()>>>(
    name: &'static str,
    needs: Needs,
    body: impl FnOnce() -> F + Send + 'static,
) -> Case {
    case_within(LIMIT, name, needs, body)
}

/// The same with a time limit of its own.
pub fn case_within<F: Future<Output = Result<()>>>(
    limit: Duration,
    name: &'static str,
    needs: Needs,
    body: impl FnOnce() -> F + Send + 'static,
) -> Case {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let limited =
            async { timeout(limit, body()).await.with_context(|| format!("not done within {limit:?}"))? };
        runtime.block_on(limited)
    };
    Case { name, needs, run: Box::new(run) }
}

/// Runs the cases as the standard harness would, its arguments included. To be called first in `main`.
pub fn main(cases: Vec<Case>) -> ExitCode {
    let arguments = Arguments::from_args();
    let namespace = match enter(&arguments) {
        Ok(namespace) => namespace,
        Err(error) => return complain(&format!("{error:#}")),
    };
    let lacking = cases.iter().filter(|case| !case.needs.met(&namespace)).count();
    if lacking > 0 && !arguments.list {
        let (all, why) = (
            cases.len(),
            if namespace.mounts() {
                format!("they need root, for more than one uid; here: {namespace}")
            } else {
                format!("they need mounts; here: {namespace}; {REMEDY}")
            },
        );
        complain(&format!("{lacking} of {all} tests are ignored: {why}"));
    }
    let trials = cases.into_iter().map(|case| {
        let ignored = !case.needs.met(&namespace);
        let run = case.run;
        Trial::test(case.name, move || run().map_err(|error| Failed::from(format!("{error:#}"))))
            .with_ignored_flag(ignored)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn enter(arguments: &Arguments) -> Result<Namespace> {
    // A listing needs no namespace, and who asked for it reads what we print.
    let namespace = mount::enter()?;
    let required = std::env::var_os(REQUIRE).is_some() || std::env::var("CI").is_ok_and(|ci| ci == "true");
    match &namespace {
        Namespace::None { reason } if required && !arguments.list => {
            bail!("mounts are required, and this machine allows none ({reason}): {REMEDY}")
        }
        Namespace::None { .. } | Namespace::Root | Namespace::User => Ok(namespace),
    }
}

#[expect(clippy::print_stderr, reason = "a test harness speaks to who runs it")]
fn complain(text: &str) -> ExitCode {
    eprintln!("countersign-tests: {text}");
    ExitCode::FAILURE
}
