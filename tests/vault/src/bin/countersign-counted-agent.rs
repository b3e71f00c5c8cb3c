//! The agent, on an allocator that counts: how many bytes it has asked for is in the file that `COUNTED` names, ten times a
//! second. Everything else is as in the agent that ships, but that what is freed is not overwritten.

use std::alloc::System;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use countersign_agent::config::RunArgs;
use countersign_agent::{log, run, signals};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How often the count is written.
const BEAT: Duration = Duration::from_millis(100);

#[derive(Debug, Parser)]
enum Cli {
    /// As the agent's own
    Run(Box<RunArgs>),
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the last word of a process that could not start")]
            {
                eprintln!("countersign-counted-agent: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let Cli::Run(args) = Cli::parse();
    log::start(&args.log, args.audit)?;
    let path = std::env::var_os("COUNTED").context("COUNTED names no file")?;
    let file = File::create(path)?;
    // Without an allocation of its own. It ends with the process.
    std::thread::spawn(move || {
        let mut text = [b' '; 24];
        loop {
            let stats = MEMORY.stats();
            let bytes = stats.bytes_allocated;
            if write!(text.as_mut_slice(), "{bytes:<20}").is_err() || file.write_all_at(&text, 0).is_err() {
                return;
            }
            std::thread::sleep(BEAT);
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(signals::until_asked_to_end(|shutdown| Box::pin(run::run(*args, shutdown))))
}
