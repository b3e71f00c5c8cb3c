//! What the agent takes from itself before it holds anything: it starts without power and keeps none.

use std::io;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask};
use rustix::thread::set_no_new_privs;

/// No core dumps and no debugger of the same user (the process is not dumpable), no privileges through execve,
/// and a mode mask under which directories come out as the volume layout wants them.
pub fn shed() -> io::Result<()> {
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    umask(Mode::WGRP | Mode::WOTH);
    Ok(())
}
