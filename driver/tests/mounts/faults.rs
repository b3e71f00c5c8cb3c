//! The driver dies between any two steps: nothing is lost, and nothing is left.

use std::fs;

use rustix::mount::{MountFlags, mount};
use rustix::process::Signal;
use serde_json::json;

use crate::kit::agent::FakeAgent;
use crate::kit::driver::Start;
use crate::kit::eventually;
use crate::kit::ground::Ground;

const PUBLISH: &[&str] = &[
    "publish.resolved",
    "publish.made",
    "publish.cloned",
    "publish.handed",
    "publish.filled",
    "publish.directory",
    "publish.attached",
    "publish.remembered",
];

const UNPUBLISH: &[&str] =
    &["unpublish.resolved", "unpublish.unmounted", "unpublish.removed", "unpublish.forgotten"];

async fn dies_publishing(start: Start) {
    for point in PUBLISH {
        let ground = Ground::new();
        let agent = FakeAgent::start(&ground.link());
        let mut driver = start.clone().die_at(point).run(&ground).await;
        let volume = ground.volume("pod-1");
        driver.publish(&volume).await.expect_err(point);
        assert!(!driver.ended().await.success(), "{point}");
        // What is attached is whole: it was filled before.
        for mount in ground.mounts() {
            assert_eq!(volume.read(), "token-1", "{point}");
            assert!(mount.options.starts_with("ro,"), "{point}: {mount:?}");
        }

        let driver = start.run(&ground).await;
        driver.connected().await;
        driver.publish(&volume).await.expect(point);
        assert_eq!(ground.mounts().len(), 1, "{point}");
        assert_eq!(volume.read(), "token-1", "{point}");
        agent.refresh(&volume.id(), "token-2").expect(point);
        assert_eq!(volume.read(), "token-2", "{point}");
        driver.unpublish(&volume).await.expect(point);
        ground.assert_clean(&volume);
        assert!(!agent.holds(&volume.id()), "{point}");
    }
}

#[tokio::test]
async fn dying_between_any_two_steps_of_a_publish_by_a_detached_clone() {
    dies_publishing(Start::default()).await;
}

#[tokio::test]
async fn dying_between_any_two_steps_of_a_publish_by_an_attached_clone() {
    dies_publishing(Start::default().attached()).await;
}

#[tokio::test]
async fn dying_in_a_publish_that_kubelet_never_repeats_is_cleaned_up_by_its_unpublish() {
    for point in PUBLISH {
        let ground = Ground::new();
        let agent = FakeAgent::start(&ground.link());
        let mut driver = Start::default().die_at(point).run(&ground).await;
        let volume = ground.volume("pod-1");
        driver.publish(&volume).await.expect_err(point);
        driver.ended().await;
        let driver = Start::default().run(&ground).await;
        driver.connected().await;
        driver.unpublish(&volume).await.expect(point);
        ground.assert_clean(&volume);
        assert!(!agent.holds(&volume.id()), "{point}");
    }
}

#[tokio::test]
async fn dying_between_any_two_steps_of_an_unpublish() {
    for point in UNPUBLISH {
        let ground = Ground::new();
        let agent = FakeAgent::start(&ground.link());
        let mut driver = Start::default().die_at(point).run(&ground).await;
        let volume = ground.volume("pod-1");
        driver.publish(&volume).await.unwrap();
        driver.unpublish(&volume).await.expect_err(point);
        assert!(!driver.ended().await.success(), "{point}");
        let driver = Start::default().run(&ground).await;
        driver.connected().await;
        driver.unpublish(&volume).await.expect(point);
        ground.assert_clean(&volume);
        assert!(!agent.holds(&volume.id()), "{point}");
    }
}

#[tokio::test]
async fn dying_between_any_two_steps_of_a_republish() {
    for point in ["republish.begun", "republish.cloned"] {
        let ground = Ground::new();
        let agent = FakeAgent::start(&ground.link());
        let driver = Start::default().run(&ground).await;
        let volume = ground.volume("pod-1");
        driver.publish(&volume).await.unwrap();
        let mounts = ground.mounts();
        driver.kill().await;
        agent.lose(&volume.id());
        let mut driver = Start::default().die_at(point).run(&ground).await;
        driver.connected().await;
        driver.publish(&volume).await.expect_err(point);
        driver.ended().await;
        assert_eq!((ground.mounts(), volume.read()), (mounts, "token-1".to_owned()), "{point}");
        let driver = Start::default().run(&ground).await;
        driver.connected().await;
        driver.publish_request(volume.publish_with("token-2")).await.unwrap();
        assert_eq!(volume.read(), "token-2", "{point}");
    }
}

#[tokio::test]
async fn dying_while_recovering() {
    for point in ["recovery.scanned", "recovery.repaired"] {
        let ground = Ground::new();
        let _agent = FakeAgent::start(&ground.link());
        let volume = ground.volume("pod-1");
        fs::create_dir(volume.target()).unwrap();
        let source = format!("countersign:{}", volume.id());
        mount(&*source, volume.target(), "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(volume.target().join("password"), "old").unwrap();
        let mut driver = Start::default().die_at(point).spawn(&ground);
        assert!(!driver.ended().await.success(), "{point}");
        assert_eq!(volume.read(), "old");
        let driver = Start::default().run(&ground).await;
        assert_eq!(driver.status()["volumes"], json!(1), "{point}");
        assert!(ground.mounts()[0].options.starts_with("ro,"), "{point}");
    }
}

#[tokio::test]
async fn a_driver_that_stands_still_goes_on_where_it_was() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().stop_at("publish.filled").run(&ground).await;
    let volume = ground.volume("pod-1");
    let (published, ()) = tokio::join!(driver.publish(&volume), async {
        eventually("the driver stands still", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", driver.pid())).unwrap();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
        .await;
        assert_eq!(ground.mounts(), []);
        assert!(agent.holds(&volume.id()));
        driver.signal(Signal::CONT);
    });
    published.unwrap();
    assert_eq!(volume.read(), "token-1");
}
