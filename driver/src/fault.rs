//! Places where a test can end or stop the process, between any two steps of the work.
//!
//! Debug builds read `COUNTERSIGN_DIE_AT` and `COUNTERSIGN_STOP_AT`; a process that reaches the point named there
//! sends itself SIGKILL or SIGSTOP. Release builds have none of it.

/// Marks a point.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    use rustix::process::{Signal, getpid, kill_process};
    for (variable, signal) in [("COUNTERSIGN_DIE_AT", Signal::KILL), ("COUNTERSIGN_STOP_AT", Signal::STOP)] {
        if std::env::var(variable).is_ok_and(|at| at == name) {
            // Nothing is left to say when even this fails: the test that waits for it will.
            kill_process(getpid(), signal).ok();
        }
    }
}

/// Marks a point: nothing at all in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) const fn point(_name: &str) {}
