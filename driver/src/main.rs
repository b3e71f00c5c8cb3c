//! Starts the driver.

use std::alloc::System;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use countersign_driver::config::{CommandLine, Config};
use countersign_driver::{log, probe, process, signaller};
use zeroizing_alloc::ZeroAlloc;

/// Overwrites what is freed: tokens also pass through gRPC's own buffers.
#[global_allocator]
static MEMORY: ZeroAlloc<System> = ZeroAlloc(System);

/// Exit code of a mistake in the configuration: `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

fn main() -> anyhow::Result<ExitCode> {
    let word = std::env::args_os().nth(1).unwrap_or_default();
    if word == probe::WORD {
        return probed();
    }
    if word == signaller::WORD {
        return signalling();
    }
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => return unread(&error),
    };
    let (format, severity) = (line.log_format, line.log_level);
    let config = match Config::try_from(line) {
        Ok(config) => config,
        Err(mistakes) => {
            let mut out = std::io::stderr().lock();
            for mistake in mistakes {
                writeln!(out, "error: {mistake}")?;
            }
            return Ok(ExitCode::from(USAGE));
        }
    };
    log::start(format, severity)?;
    runtime()?.block_on(process::run(config)).context("countersign-driver")?;
    Ok(ExitCode::SUCCESS)
}

/// One thread is enough for a node's volumes, and the leanest there is.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}

/// Sends signals for the driver of this node.
fn signalling() -> anyhow::Result<ExitCode> {
    let line = match signaller::CommandLine::try_parse_from(std::env::args_os().skip(1)) {
        Ok(line) => line,
        Err(error) => return unread(&error),
    };
    log::start(line.log_format, line.log_level)?;
    runtime()?.block_on(signaller::run(line)).context("countersign-driver signaller")?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the driver that runs, and says what it answers.
fn probed() -> anyhow::Result<ExitCode> {
    let line = match probe::CommandLine::try_parse_from(std::env::args_os().skip(1)) {
        Ok(line) => line,
        Err(error) => return unread(&error),
    };
    match probe::ask(&line.link_dir) {
        Ok(status) => {
            std::io::stdout().lock().write_all(status.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(problem) => {
            writeln!(std::io::stderr().lock(), "error: {problem}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Help, the version, or a mistake in the command line.
fn unread(error: &clap::Error) -> anyhow::Result<ExitCode> {
    error.print()?;
    Ok(ExitCode::from(if error.use_stderr() { USAGE } else { 0 }))
}
