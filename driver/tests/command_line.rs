//! The command line as a user meets it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on says so by panicking"
)]

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_countersign-driver"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[test]
fn help_names_every_option_and_its_variable() {
    let (code, said) = run(&["--help"], &[]);
    assert_eq!(code, Some(0));
    for option in [
        "node-id",
        "driver-name",
        "kubelet-root",
        "csi-socket",
        "registration-dir",
        "link-dir",
        "agent-uid",
        "volume-capacity",
        "clone-attached",
        "tokens-from-context",
        "log-format",
        "log-level",
    ] {
        let variable = format!("COUNTERSIGN_{}", option.replace('-', "_").to_uppercase());
        assert!(said.contains(&format!("--{option}")) && said.contains(&variable), "{option} in {said}");
    }
}

#[test]
fn a_missing_option_is_a_mistake_of_the_user() {
    let (code, said) = run(&[], &[]);
    assert_eq!(code, Some(64));
    assert!(said.contains("--node-id") && said.contains("--link-dir"), "{said}");
}

#[test]
fn all_mistakes_are_told_together() {
    let (code, said) = run(
        &["--link-dir=relative", "--volume-capacity=lots"],
        &[("COUNTERSIGN_NODE_ID", ""), ("COUNTERSIGN_DRIVER_NAME", "a b")],
    );
    assert_eq!(code, Some(64));
    let told: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("error: --")).collect();
    let named: Vec<&str> = told.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(named, ["node-id", "driver-name", "link-dir", "volume-capacity"], "{said}");
}

/// What the probe says of whoever listens at the status socket and answers with this.
fn probe(answer: Option<&str>) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().to_str().unwrap();
    let ask = || run(&["probe"], &[("COUNTERSIGN_LINK_DIR", link)]);
    let Some(answer) = answer else { return ask() };
    let listener = UnixListener::bind(directory.path().join("driver-status.sock")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| listener.accept().unwrap().0.write_all(answer.as_bytes()).unwrap());
        ask()
    })
}

#[test]
fn the_probe_tells_a_driver_that_answers_from_one_that_does_not() {
    assert_eq!(probe(Some("{\"version\":\"1\"}\n")), (Some(0), "{\"version\":\"1\"}\n".to_owned()));
    for (answer, problem) in [
        (None, "driver-status.sock: the driver is not running"),
        (Some(""), "the driver ended in the middle of its answer"),
        (Some("{"), "the driver ended in the middle of its answer"),
    ] {
        let (code, said) = probe(answer);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.starts_with("error: ") && said.contains(problem), "{said}");
    }
    assert_eq!(run(&["probe"], &[]).0, Some(64));
}
