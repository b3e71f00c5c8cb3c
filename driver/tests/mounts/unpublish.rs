//! Unpublishing: always, twice, without agent, and never more than was ours.

use std::fs;

use serde_json::json;
use tonic::Code;

use crate::kit::agent::FakeAgent;
use crate::kit::driver::Start;
use crate::kit::eventually;
use crate::kit::ground::Ground;

#[tokio::test]
async fn what_never_was_is_gone_already() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.unpublish(&volume).await.unwrap();
    ground.assert_clean(&volume);
    // A directory without a mount, as after a reboot.
    fs::create_dir(volume.target()).unwrap();
    driver.unpublish(&volume).await.unwrap();
    ground.assert_clean(&volume);
    // Kubelet's own directory is gone too, and then all of them.
    fs::remove_dir_all(ground.root().join("pods/pod-1")).unwrap();
    driver.unpublish(&volume).await.unwrap();
    fs::remove_dir(ground.root().join("pods")).unwrap();
    driver.unpublish(&volume).await.unwrap();
}

#[tokio::test]
async fn twice_is_as_good_as_once() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    driver.connected().await;
    let volume = ground.volume("pod-1");
    let before = driver.descriptors().await;
    driver.publish(&volume).await.unwrap();
    for _ in 0..3 {
        driver.unpublish(&volume).await.unwrap();
        ground.assert_clean(&volume);
    }
    assert!(!agent.holds(&volume.id()));
    assert_eq!(driver.descriptors().await, before);
}

#[tokio::test]
async fn a_busy_volume_goes_too() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    let held = fs::File::open(volume.target().join("password")).unwrap();
    driver.unpublish(&volume).await.unwrap();
    ground.assert_clean(&volume);
    drop(held);
}

#[tokio::test]
async fn without_an_agent_it_works_and_the_agent_hears_of_it_later() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let (gone, stays) = (ground.volume("pod-1"), ground.volume("pod-2"));
    driver.publish(&gone).await.unwrap();
    driver.publish(&stays).await.unwrap();
    agent.kill();
    driver.disconnected().await;
    driver.unpublish(&gone).await.unwrap();
    assert!(!gone.target().exists());
    let agent = FakeAgent::start(&ground.link());
    driver.connected().await;
    assert_eq!(agent.calls(), [crate::kit::agent::Call::Reconcile(vec![stays.id()])]);
}

#[tokio::test]
async fn an_agent_that_does_not_answer_holds_it_up_for_two_seconds_at_most() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    agent.deafen(true);
    driver.unpublish(&volume).await.unwrap();
    ground.assert_clean(&volume);
    assert!(agent.holds(&volume.id()), "it has not listened");
}

#[tokio::test]
async fn a_volume_that_ends_while_the_agent_is_greeted_is_forgotten() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    agent.kill();
    driver.disconnected().await;
    // The next agent has been told of the volume, and does not answer yet.
    let agent = FakeAgent::start_with(&ground.link(), crate::kit::agent::Manner::Fill, true);
    eventually("the agent is greeted", || !agent.calls().is_empty()).await;
    driver.unpublish(&volume).await.unwrap();
    let waiting = driver.publish(&ground.volume("pod-2")).await.unwrap_err();
    assert_eq!(waiting.code(), Code::Unavailable, "no publish runs before the greeting has been answered");
    agent.deafen(false);
    eventually("the agent is told", || agent.forgot(&volume.id())).await;
    driver.connected().await;
    driver.publish(&ground.volume("pod-2")).await.unwrap();
}

#[tokio::test]
async fn a_file_beside_the_mount_is_never_removed() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    fs::create_dir(volume.target()).unwrap();
    fs::write(volume.target().join("precious"), "").unwrap();
    let status = driver.unpublish(&volume).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(
        status.message().starts_with("could not remove the directory target_path: "),
        "{}",
        status.message()
    );
    assert!(volume.target().join("precious").exists());
}

#[tokio::test]
async fn stacked_volumes_go_one_after_the_other() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    let source = format!("countersign:{}", volume.id());
    rustix::mount::mount(&*source, volume.target(), "tmpfs", rustix::mount::MountFlags::empty(), None)
        .unwrap();
    assert_eq!(ground.mounts().len(), 2);
    driver.unpublish(&volume).await.unwrap();
    ground.assert_clean(&volume);
    assert_eq!(driver.status()["volumes"], json!(0));
}

#[tokio::test]
async fn a_target_outside_of_the_pods_directory_is_refused() {
    let ground = Ground::new();
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    for target in ["/", "/etc", "relative", &format!("{}/../mount", volume.parent().display())] {
        let mut request = volume.unpublish();
        request.target_path = target.to_owned();
        let status = crate::kit::driver::unpublish(&driver.socket(), request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{target}");
    }
}
