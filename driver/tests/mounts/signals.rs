//! Signals on change: from the agent's word that files have changed to the process that gets one.

use countersign_proto::agent::SignalledRequest;
use tonic::Code;

use crate::kit::agent::{FakeAgent, Manner};
use crate::kit::driver::{Process, Start};
use crate::kit::eventually;
use crate::kit::ground::{Ground, Volume};
use crate::kit::signaller::{Shell, Signaller, directory};

const POD: &str = "0f3c2a61-93a2-4f57-8f0d-1b7f6a2f9a10";

fn start(ground: &Ground) -> Start {
    Start::default().option(format!("--signals={}", directory(ground).display()))
}

async fn signalled(agent: &FakeAgent, order: u64, volume: &Volume) -> SignalledRequest {
    eventually("the driver takes orders", || agent.order(order, &volume.id())).await;
    eventually("an order is answered", || agent.signalled().iter().any(|answer| answer.order == order)).await;
    agent.signalled().into_iter().find(|answer| answer.order == order).unwrap()
}

#[tokio::test]
async fn a_pod_gets_the_signal_it_asked_for() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let proc = ground.path().join("proc");
    std::fs::create_dir_all(&proc).unwrap();
    let _signaller = Signaller::start(&ground, &proc).await;
    let driver = start(&ground).run(&ground).await;
    let (volume, other) = (ground.volume(POD), ground.volume("1f3c2a61-93a2-4f57-8f0d-1b7f6a2f9a11"));
    driver.publish_request(volume.publish_on_change("signal:HUP@sh")).await.unwrap();
    driver.publish(&other).await.unwrap();
    assert!(agent.last_publish().signals);

    // Its files have come before its container.
    let early = signalled(&agent, 1, &volume).await;
    assert_eq!((early.processes, early.problem.as_str()), (0, ""));
    let shell = Shell::start(ground.path().join("heard")).await;
    let bystander = Shell::start(ground.path().join("bystander")).await;
    shell.runs_in(&proc, &volume);
    bystander.runs_in(&proc, &other);
    let told = signalled(&agent, 2, &volume).await;
    assert_eq!((told.processes, told.problem.as_str()), (1, ""));
    eventually("the signal arrives", || shell.heard() == "ready\nhup\n").await;

    // Who asked for none gets none, whatever the agent says.
    let refused = signalled(&agent, 3, &other).await;
    assert_eq!(refused.processes, 0);
    assert!(refused.problem.contains("does not know yet what the volume asks for"), "{}", refused.problem);
    assert_eq!(bystander.heard(), "ready\n");

    driver.unpublish(&volume).await.unwrap();
    assert!(signalled(&agent, 4, &volume).await.problem.contains("does not know yet"));
    assert_eq!(shell.heard(), "ready\nhup\n");
}

#[tokio::test]
async fn after_a_restart_kubelets_next_republish_tells_the_driver() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let proc = ground.path().join("proc");
    let volume = ground.volume(POD);
    let driver = start(&ground).run(&ground).await;
    driver.publish_request(volume.publish_on_change("signal:HUP")).await.unwrap();
    assert!(signalled(&agent, 1, &volume).await.problem.contains("the signaller of this node does not run"));
    driver.kill().await;

    let driver: Process = start(&ground).run(&ground).await;
    let shell = Shell::start(ground.path().join("heard")).await;
    shell.runs_in(&proc, &volume);
    let _signaller = Signaller::start(&ground, &proc).await;
    driver.connected().await;
    eventually("the driver asks for orders again", || agent.order(2, &volume.id())).await;
    assert!(signalled(&agent, 2, &volume).await.problem.contains("does not know yet"));
    driver.publish_request(volume.publish_on_change("signal:HUP")).await.unwrap();
    assert_eq!(signalled(&agent, 3, &volume).await.processes, 1);
    eventually("the signal arrives", || shell.heard() == "ready\nhup\n").await;
}

#[tokio::test]
async fn without_a_signaller_the_agent_is_told_so_and_asked_for_nothing() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume(POD);
    driver.publish_request(volume.publish_on_change("signal:HUP")).await.unwrap();
    assert!(!agent.last_publish().signals);
    assert!(!agent.order(1, &volume.id()), "orders are asked for that nobody could carry out");
}

#[tokio::test]
async fn an_agent_that_knows_no_signals_is_said_so_once() {
    let ground = Ground::new();
    let agent = FakeAgent::start_as(&ground.link(), Manner::Refuse(Code::Unimplemented, ""));
    let driver = start(&ground).run(&ground).await;
    driver.connected().await;
    let said = "of a version that has no signals sent";
    eventually("it is said", || driver.log().contains(said)).await;
    agent.behave(Manner::Fill);
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    assert_eq!(volume.read(), "token-1");
    assert_eq!(driver.log().matches(said).count(), 1);
}
