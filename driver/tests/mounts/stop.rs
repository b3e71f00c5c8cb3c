//! Starting, being watched, and being stopped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;

use crate::kit::agent::{FakeAgent, Manner};
use crate::kit::driver::Start;
use crate::kit::eventually;
use crate::kit::ground::Ground;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn its_sockets_are_its_own_and_it_is_in_its_sandbox() {
    let ground = Ground::new();
    let driver = Start::default().run(&ground).await;
    assert_eq!(mode(&ground.csi_socket()), 0o600);
    assert_eq!(mode(ground.csi_socket().parent().unwrap()), 0o700);
    eventually("it registers", || ground.registration_socket().exists()).await;
    assert_eq!(mode(&ground.registration_socket()), 0o600);
    let status = fs::read_to_string(format!("/proc/{}/status", driver.pid())).unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert_eq!(line("Seccomp:"), "Seccomp:\t2");
    assert_eq!(line("Seccomp_filters:"), "Seccomp_filters:\t2");
    assert_eq!(line("NoNewPrivs:"), "NoNewPrivs:\t1");
    assert_eq!(line("Threads:"), "Threads:\t1");
}

#[tokio::test]
async fn told_to_stop_it_lets_running_calls_end_and_leaves_the_mounts() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let mut driver = Start::default().run(&ground).await;
    let (done, running) = (ground.volume("pod-1"), ground.volume("pod-2"));
    driver.publish(&done).await.unwrap();
    agent.behave(Manner::Hang);
    let (published, ()) = tokio::join!(driver.publish(&running), async {
        eventually("the agent is asked", || agent.publishes() == 2).await;
        driver.signal(Signal::TERM);
        eventually("the registration is withdrawn", || !ground.registration_socket().exists()).await;
        agent.behave(Manner::Fill);
    });
    published.unwrap();
    assert!(driver.ended().await.success());
    assert_eq!((done.read(), running.read()), ("token-1".to_owned(), "token-1".to_owned()));
    assert!(!ground.csi_socket().exists());
}

#[tokio::test]
async fn told_twice_it_stops_at_once() {
    let ground = Ground::new();
    let agent = FakeAgent::start_as(&ground.link(), Manner::Hang);
    let mut driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    let (published, ()) = tokio::join!(driver.publish(&volume), async {
        eventually("the agent is asked", || agent.publishes() == 1).await;
        driver.signal(Signal::TERM);
        eventually("the registration is withdrawn", || !ground.registration_socket().exists()).await;
        driver.signal(Signal::TERM);
    });
    published.unwrap_err();
    driver.ended().await;
    ground.assert_clean(&volume);
}

#[tokio::test]
async fn a_killed_driver_s_sockets_do_not_stand_in_the_way() {
    let ground = Ground::new();
    let driver = Start::default().run(&ground).await;
    eventually("it registers", || ground.registration_socket().exists()).await;
    driver.kill().await;
    assert!(ground.csi_socket().exists());
    Start::default().run(&ground).await;
}

#[tokio::test]
async fn what_it_cannot_do_without_ends_it_with_the_reason() {
    let ground = Ground::new();
    let mut driver = Start::default().option("--kubelet-root=/nowhere").spawn(&ground);
    assert_eq!(driver.ended().await.code(), Some(1));
}
