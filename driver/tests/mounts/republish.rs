//! Republishing: it never fails for the agent's sake, and never takes anything away.

use serde_json::json;
use tonic::Code;

use crate::kit::agent::{Call, FakeAgent, Manner};
use crate::kit::driver::Start;
use crate::kit::eventually;
use crate::kit::ground::Ground;

#[tokio::test]
async fn the_same_again_does_not_reach_the_agent() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    agent.take_calls();
    let (mounts, before) = (ground.mounts(), driver.descriptors().await);
    for _ in 0..20 {
        driver.publish(&volume).await.unwrap();
    }
    assert_eq!(agent.calls(), []);
    assert_eq!((ground.mounts(), driver.descriptors().await), (mounts, before));
}

#[tokio::test]
async fn a_new_token_goes_to_the_agent_without_a_descriptor() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    agent.take_calls();
    driver.publish_request(volume.publish_with("token-2")).await.unwrap();
    let (id, token) = (volume.id(), "token-2".to_owned());
    assert_eq!(agent.take_calls(), [Call::Publish { id, keyed: false, provisional: false, token }]);
    assert_eq!(volume.read(), "token-2");
    driver.publish_request(volume.publish_with("token-2")).await.unwrap();
    assert_eq!(agent.take_calls(), []);
}

#[tokio::test]
async fn a_new_agent_is_handed_the_volume_again() {
    for start in [Start::default(), Start::default().attached()] {
        let ground = Ground::new();
        let agent = FakeAgent::start(&ground.link());
        let driver = start.run(&ground).await;
        let volume = ground.volume("pod-1");
        driver.publish(&volume).await.unwrap();
        let mounts = ground.mounts();
        agent.kill();
        driver.disconnected().await;
        assert_eq!(volume.read(), "token-1");
        // Nobody to tell: not kubelet's trouble.
        driver.publish_request(volume.publish_with("token-2")).await.unwrap();
        assert_eq!(volume.read(), "token-1");

        let agent = FakeAgent::start(&ground.link());
        driver.connected().await;
        assert_eq!(agent.take_calls(), [Call::Reconcile(vec![volume.id()])]);
        driver.publish(&volume).await.unwrap();
        let (id, token) = (volume.id(), "token-1".to_owned());
        assert_eq!(agent.take_calls(), [Call::Publish { id, keyed: true, provisional: false, token }]);
        agent.refresh(&volume.id(), "token-3").unwrap();
        assert_eq!(volume.read(), "token-3");
        assert_eq!(ground.mounts(), mounts, "the pod's own mount is never touched");
        driver.publish(&volume).await.unwrap();
        assert_eq!(agent.take_calls(), []);
    }
}

#[tokio::test]
async fn what_the_agent_makes_of_it_is_not_kubelet_s_trouble() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    agent.behave(Manner::Refuse(Code::InvalidArgument, "unknown store"));
    driver.publish_request(volume.publish_with("token-2")).await.unwrap();
    assert_eq!(volume.read(), "token-1");
    assert_eq!(ground.mounts().len(), 1);
    // What was refused is not taken for delivered.
    agent.behave(Manner::Fill);
    driver.publish_request(volume.publish_with("token-2")).await.unwrap();
    assert_eq!(volume.read(), "token-2");
}

#[tokio::test]
async fn an_agent_that_lost_the_volume_gets_it_with_the_next_one() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    agent.lose(&volume.id());
    driver.publish_request(volume.publish_with("token-2")).await.unwrap();
    assert!(!agent.holds(&volume.id()));
    driver.publish_request(volume.publish_with("token-2")).await.unwrap();
    assert!(agent.holds(&volume.id()));
    assert_eq!(volume.read(), "token-2");
}

#[tokio::test]
async fn an_agent_that_dies_over_it_changes_nothing() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    agent.take_calls();
    agent.behave(Manner::Hang);
    let (published, ()) = tokio::join!(driver.publish_request(volume.publish_with("token-2")), async {
        eventually("the agent is asked", || agent.publishes() == 1).await;
        agent.kill();
    });
    published.unwrap();
    assert_eq!(volume.read(), "token-1");
    assert_eq!(driver.status()["volumes"], json!(1));
}

#[tokio::test]
async fn a_volume_that_went_away_is_made_anew() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    // Somebody unmounted it behind the driver's back.
    rustix::mount::unmount(volume.target(), rustix::mount::UnmountFlags::DETACH).unwrap();
    driver.publish(&volume).await.unwrap();
    assert_eq!(volume.read(), "token-1");
    agent.refresh(&volume.id(), "token-2").unwrap();
    assert_eq!(volume.read(), "token-2");
}
