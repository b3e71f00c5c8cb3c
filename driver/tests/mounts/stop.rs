//! Starting, being watched, and being stopped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;
use tonic::Code;

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

/// A second installation would take the first one's sockets away, and the first would take them back at its restart.
#[tokio::test]
async fn a_second_driver_stands_by_until_the_first_has_ended() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let first = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    first.publish(&volume).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut second = Start::default().beside(elsewhere.path()).run(&ground).await;
    let told = second.status()["standing_by"].as_str().unwrap().to_owned();
    assert!(told.starts_with("another countersign driver serves kubelet from "), "{told}");
    assert!(told.contains("remove one of the two installations"), "{told}");
    assert_eq!(second.status()["registered"], false);
    // It is alive for kubelet, and the first one serves on.
    assert!(countersign_driver::probe::ask(elsewhere.path()).is_ok());
    first.publish(&ground.volume("pod-2")).await.unwrap();
    assert_eq!(agent.publishes(), 2);
    first.kill().await;
    // For a moment nobody answers: the socket of the one that stood by is gone, and that of the driver is not there yet.
    let serves = || {
        countersign_driver::probe::ask(elsewhere.path())
            .is_ok_and(|line| line.contains(r#""standing_by":null"#))
    };
    eventually("it takes over", serves).await;
    assert_eq!(second.status()["volumes"], 2);
    assert_eq!(volume.read(), "token-1");
    // One that is told to stop while it stands by does.
    let third_place = tempfile::tempdir().unwrap();
    let mut third = Start::default().beside(third_place.path()).run(&ground).await;
    third.signal(Signal::TERM);
    assert!(third.ended().await.success());
    second.signal(Signal::TERM);
    assert!(second.ended().await.success());
}

/// Where kubelet is elsewhere it never comes. What it has mounted into the driver's container shows where it is.
#[tokio::test]
async fn a_driver_whose_kubelet_is_elsewhere_stands_by_and_says_where() {
    let ground = Ground::new();
    let real = ground.path().join("k0s/kubelet/pods/uid-1");
    let (hosts, seen) = (real.join("etc-hosts"), ground.path().join("hosts"));
    fs::create_dir_all(&real).unwrap();
    fs::write(&hosts, "").unwrap();
    fs::write(&seen, "").unwrap();
    let own = Start::default().option("--pod-uid=uid-1");
    let mut blind = own.run(&ground).await;
    let told = blind.status()["standing_by"].as_str().unwrap().to_owned();
    let root = ground.root();
    assert!(told.starts_with(&format!("kubelet's root directory is not {}", root.display())), "{told}");
    assert!(told.contains("there. Set the chart's value kubeletDir"), "{told}");
    blind.signal(Signal::TERM);
    assert!(blind.ended().await.success());

    rustix::mount::mount_bind(&hosts, &seen).unwrap();
    let mut driver = own.run(&ground).await;
    let told = driver.status()["standing_by"].as_str().unwrap().to_owned();
    assert!(told.contains(", but below /"), "{told}");
    assert!(told.contains("/k0s/kubelet of its file system. Set"), "{told}");
    // It is alive for kubelet, not ready for the agent, and has made nothing at the wrong place.
    assert!(countersign_driver::probe::ask(&ground.link()).is_ok());
    assert_eq!(driver.status()["registered"], false);
    assert!(!ground.root().join("plugins").exists() && !ground.registration_socket().exists());
    driver.signal(Signal::TERM);
    assert!(driver.ended().await.success());
    // Told right, it serves.
    fs::create_dir_all(ground.root().join("pods/uid-1")).unwrap();
    let driver = own.run(&ground).await;
    eventually("it registers", || ground.registration_socket().exists()).await;
    assert_eq!(driver.status()["standing_by"], serde_json::Value::Null);
}

/// Driver and agent are of one release, but for the moments of a change.
#[tokio::test]
async fn an_agent_that_lacks_a_call_is_said_to_be_of_another_version() {
    let ground = Ground::new();
    let agent = FakeAgent::start_as(&ground.link(), Manner::Refuse(Code::Unimplemented, ""));
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    let status = driver.publish(&volume).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().starts_with("the countersign agent does not know the call Publish"),
        "{status:?}"
    );
    assert!(status.message().ends_with("install both from one release"), "{status:?}");
    // The right one comes in its place, and kubelet has tried again.
    agent.behave(Manner::Fill);
    driver.publish(&volume).await.unwrap();
    // One that can't be told of an end hears of it with the list of the next connection, and is not told again and again.
    agent.behave(Manner::Refuse(Code::Unimplemented, ""));
    driver.unpublish(&volume).await.unwrap();
    let log = driver.log();
    assert!(!log.contains("the agent has not heard"), "{log}");
}
