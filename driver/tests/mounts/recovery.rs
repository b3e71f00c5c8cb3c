//! After a restart: of the driver, of the agent, of both.

use std::fs;

use rustix::mount::{MountFlags, mount};
use serde_json::json;

use crate::kit::agent::{Call, FakeAgent};
use crate::kit::driver::Start;
use crate::kit::ground::Ground;

#[tokio::test]
async fn a_killed_driver_takes_up_what_it_had_mounted() {
    for start in [Start::default(), Start::default().attached()] {
        let ground = Ground::new();
        let agent = FakeAgent::start(&ground.link());
        let driver = start.run(&ground).await;
        let volume = ground.volume("pod-1");
        driver.publish(&volume).await.unwrap();
        let mounts = ground.mounts();
        driver.kill().await;
        agent.refresh(&volume.id(), "token-2").unwrap();
        assert_eq!(volume.read(), "token-2", "the agent needs no driver to refresh");
        agent.take_calls();

        let driver = start.run(&ground).await;
        driver.connected().await;
        assert_eq!(driver.status()["volumes"], json!(1));
        assert_eq!(agent.take_calls(), [Call::Reconcile(vec![volume.id()])]);
        // The agent has said that it holds the volume: it gets the request, and no descriptor.
        driver.publish(&volume).await.unwrap();
        let (id, token) = (volume.id(), "token-1".to_owned());
        assert_eq!(agent.take_calls(), [Call::Publish { id, keyed: false, provisional: false, token }]);
        assert_eq!(ground.mounts(), mounts);
        driver.unpublish(&volume).await.unwrap();
        ground.assert_clean(&volume);
        assert!(!agent.holds(&volume.id()));
    }
}

#[tokio::test]
async fn both_killed_is_repaired_by_the_next_republish() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    agent.kill();
    driver.kill().await;
    assert_eq!(volume.read(), "token-1");
    let driver = Start::default().run(&ground).await;
    driver.publish(&volume).await.unwrap();
    let agent = FakeAgent::start(&ground.link());
    driver.connected().await;
    driver.publish(&volume).await.unwrap();
    agent.refresh(&volume.id(), "token-2").unwrap();
    assert_eq!(volume.read(), "token-2");
    driver.unpublish(&volume).await.unwrap();
    ground.assert_clean(&volume);
}

#[tokio::test]
async fn an_unpublish_needs_no_memory() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    agent.kill();
    driver.kill().await;
    let driver = Start::default().run(&ground).await;
    driver.unpublish(&volume).await.unwrap();
    ground.assert_clean(&volume);
    assert_eq!(driver.status()["volumes"], json!(0));
}

#[tokio::test]
async fn a_volume_left_writable_is_made_read_only() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let volume = ground.volume("pod-1");
    fs::create_dir(volume.target()).unwrap();
    let source = format!("countersign:{}", volume.id());
    mount(&*source, volume.target(), "tmpfs", MountFlags::NODEV, None).unwrap();
    fs::write(volume.target().join("password"), "old").unwrap();
    let driver = Start::default().run(&ground).await;
    driver.connected().await;
    assert!(ground.mounts()[0].options.starts_with("ro,"), "{:?}", ground.mounts());
    assert_eq!(driver.status()["volumes"], json!(1));
    driver.publish(&volume).await.unwrap();
    assert_eq!(volume.read(), "token-1");
    assert!(agent.holds(&volume.id()));
    assert!(ground.mounts()[0].options.starts_with("ro,"));
}

#[tokio::test]
async fn what_is_not_a_volume_in_its_place_is_left_alone() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let (volume, other) = (ground.volume("pod-1"), ground.volume("pod-2"));
    fs::create_dir(volume.target()).unwrap();
    let outside = ground.path().join("outside");
    fs::create_dir(&outside).unwrap();
    // Another volume's id, no id, another type, another place.
    for (source, target, fs_type) in [
        (format!("countersign:{}", other.id()), volume.target(), "tmpfs"),
        ("countersign:".to_owned(), volume.target(), "tmpfs"),
        (format!("countersign:{}", volume.id()), volume.target(), "ramfs"),
        (format!("countersign:{}", volume.id()), outside, "tmpfs"),
    ] {
        mount(&*source, target, fs_type, MountFlags::empty(), None).unwrap();
    }
    let before = ground.mounts();
    let driver = Start::default().run(&ground).await;
    assert_eq!(driver.status()["volumes"], json!(0));
    assert_eq!(ground.mounts(), before);
}
