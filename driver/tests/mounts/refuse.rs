//! Publishes that fail: with the right words, and with nothing left behind.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::mount::{MountFlags, mount};
use tonic::Code;

use crate::kit::agent::{Call, FakeAgent, Manner};
use crate::kit::driver::{Start, publish};
use crate::kit::eventually;
use crate::kit::ground::Ground;

#[tokio::test]
async fn a_malformed_request_leaves_nothing() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    driver.connected().await;
    let volume = ground.volume("pod-1");
    agent.take_calls();
    let before = driver.descriptors().await;
    let mut request = volume.publish();
    request.readonly = false;
    let status = driver.publish_request(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("readOnly: true"), "{}", status.message());
    ground.assert_clean(&volume);
    assert_eq!(agent.calls(), []);
    assert_eq!(driver.descriptors().await, before);
}

#[tokio::test]
async fn a_malformed_republish_is_refused_and_takes_nothing_away() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    let mut request = volume.publish();
    request.secrets.clear();
    assert_eq!(driver.publish_request(request).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(volume.read(), "token-1");
}

#[tokio::test]
async fn what_the_agent_says_is_passed_on() {
    for start in [Start::default(), Start::default().attached()] {
        let ground = Ground::new();
        let agent = FakeAgent::start_as(
            &ground.link(),
            Manner::Refuse(Code::PermissionDenied, "store vault: denied"),
        );
        let driver = start.run(&ground).await;
        driver.connected().await;
        let volume = ground.volume("pod-1");
        let before = driver.descriptors().await;
        for _ in 0..5 {
            let status = driver.publish(&volume).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "store vault: denied"));
            ground.assert_clean(&volume);
        }
        assert!(agent.forgot(&volume.id()), "the agent is told to drop what it may have begun");
        assert_eq!(driver.descriptors().await, before);
        // Nothing of it stands in the way of the next try.
        agent.behave(Manner::Fill);
        driver.publish(&volume).await.unwrap();
        assert_eq!(volume.read(), "token-1");
    }
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_named() {
    let ground = Ground::new();
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    // Kubelet's first try may have left the directory: it is removed too.
    fs::create_dir(volume.target()).unwrap();
    let before = driver.descriptors().await;
    let status = driver.publish(&volume).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("the countersign agent is not running"), "{}", status.message());
    ground.assert_clean(&volume);
    assert_eq!(driver.descriptors().await, before);
    let _agent = FakeAgent::start(&ground.link());
    driver.connected().await;
    driver.publish(&volume).await.unwrap();
}

#[tokio::test]
async fn an_agent_of_another_user_gets_nothing() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().option("--agent-uid=4242").spawn(&ground);
    // Without that user in its namespace the driver could not even make a volume: the agent is never reached.
    eventually("the driver listens", || ground.csi_socket().exists()).await;
    let volume = ground.volume("pod-1");
    let status = driver.publish(&volume).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(agent.calls(), []);
    assert_eq!(agent.unclaimed(), 0);
    ground.assert_clean(&volume);
}

#[tokio::test]
async fn an_agent_that_dies_over_it_is_worth_another_try() {
    for start in [Start::default(), Start::default().attached()] {
        let ground = Ground::new();
        let agent = FakeAgent::start_as(&ground.link(), Manner::Hang);
        let driver = start.run(&ground).await;
        driver.connected().await;
        let volume = ground.volume("pod-1");
        let (published, ()) = tokio::join!(driver.publish(&volume), async {
            eventually("the agent is asked", || agent.publishes() == 1).await;
            agent.kill();
        });
        let status = published.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().starts_with("the countersign agent went away"), "{}", status.message());
        ground.assert_clean(&volume);

        let agent = FakeAgent::start(&ground.link());
        driver.connected().await;
        assert_eq!(agent.calls(), [Call::Reconcile(vec![])]);
        driver.publish(&volume).await.unwrap();
        assert_eq!(volume.read(), "token-1");
    }
}

#[tokio::test]
async fn an_agent_that_keeps_silent_is_not_waited_for_beyond_90_s() {
    let ground = Ground::new();
    let agent = FakeAgent::start_as(&ground.link(), Manner::Hang);
    let driver = Start::default().within(&ground);
    let volume = ground.volume("pod-1");
    let call = publish(&driver.socket, volume.publish());
    let watch = async {
        eventually("the agent is asked", || agent.publishes() == 1).await;
        // From here on the clock jumps to whatever is waited for next.
        tokio::time::pause();
    };
    let (published, ()) = tokio::join!(call, watch);
    tokio::time::resume();
    let status = published.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("did not answer within 90 s"), "{}", status.message());
    ground.assert_clean(&volume);
    driver.stop.cancel();
    agent.kill();
    driver.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failure_after_attaching_is_undone_too() {
    let ground = Ground::new();
    let agent = FakeAgent::start_as(&ground.link(), Manner::RefuseLasting);
    let driver = Start::default().attached().run(&ground).await;
    driver.connected().await;
    let volume = ground.volume("pod-1");
    let before = driver.descriptors().await;
    let status = driver.publish(&volume).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Internal, "could not keep the volume"));
    ground.assert_clean(&volume);
    assert!(agent.forgot(&volume.id()));
    assert_eq!(driver.descriptors().await, before);
}

#[tokio::test]
async fn a_file_left_open_by_the_agent_does_not_make_a_writable_volume() {
    let ground = Ground::new();
    let _agent = FakeAgent::start_as(&ground.link(), Manner::FillAndKeepOpen);
    let driver = Start::default().attached().run(&ground).await;
    let volume = ground.volume("pod-1");
    let status = driver.publish(&volume).await.unwrap_err();
    assert!(
        status.message().starts_with("could not make the volume's mount read-only: "),
        "{}",
        status.message()
    );
    ground.assert_clean(&volume);
    driver.kill().await;
    // With a clone of its own the agent may keep open what it likes.
    let driver = Start::default().run(&ground).await;
    driver.publish(&volume).await.unwrap();
    assert!(ground.mounts()[0].options.starts_with("ro,"));
}

#[tokio::test]
async fn a_symlink_in_the_path_is_refused_and_named() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    driver.connected().await;
    agent.take_calls();
    let elsewhere = ground.path().join("elsewhere");

    // The last component, and then one in the middle.
    let volume = ground.volume("pod-1");
    fs::create_dir_all(elsewhere.join("kubernetes.io~csi/secrets")).unwrap();
    symlink(&elsewhere, volume.target()).unwrap();
    let inner = ground.volume("pod-2");
    fs::remove_dir_all(ground.root().join("pods/pod-2/volumes")).unwrap();
    symlink(&elsewhere, ground.root().join("pods/pod-2/volumes")).unwrap();
    for (volume, component) in
        [(&volume, "pods/pod-1/volumes/kubernetes.io~csi/secrets/mount"), (&inner, "pods/pod-2/volumes")]
    {
        let expected =
            format!("{component} below the kubelet root is a symlink: remove it, nothing there may be one");
        for refused in [driver.publish(volume).await, driver.unpublish(volume).await] {
            let status = refused.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, &*expected));
        }
    }
    assert_eq!(ground.mounts(), []);
    assert_eq!(fs::read_link(volume.target()).unwrap(), elsewhere, "the symlink is not ours to remove");
    assert_eq!(fs::read_dir(elsewhere.join("kubernetes.io~csi/secrets")).unwrap().count(), 0);
    assert_eq!(agent.calls(), []);
}

#[tokio::test]
async fn a_symlinked_pods_directory_is_refused() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    fs::rename(ground.root().join("pods"), ground.path().join("moved")).unwrap();
    symlink(ground.path().join("moved"), ground.root().join("pods")).unwrap();
    let status = driver.publish(&volume).await.unwrap_err();
    assert!(status.message().starts_with("pods below the kubelet root is a symlink"), "{}", status.message());
}

#[tokio::test]
async fn a_file_at_the_target_is_refused_and_stays() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    fs::write(volume.target(), "precious").unwrap();
    let status = driver.publish(&volume).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().contains("secrets/mount below the kubelet root is not a directory"),
        "{status:?}"
    );
    assert_eq!(fs::read_to_string(volume.target()).unwrap(), "precious");
}

#[tokio::test]
async fn a_mount_between_pods_and_the_target_is_refused() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    mount("other", volume.parent(), "tmpfs", MountFlags::empty(), None).unwrap();
    for refused in [driver.publish(&volume).await, driver.unpublish(&volume).await] {
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().starts_with("a file system is mounted between"), "{}", status.message());
    }
    assert_eq!(ground.mounts().len(), 1);
}

#[tokio::test]
async fn somebody_else_s_mount_is_named_and_left_alone() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    driver.connected().await;
    agent.take_calls();
    let volume = ground.volume("pod-1");
    fs::create_dir(volume.target()).unwrap();
    // Ours by its source, but of another type; and a stranger.
    let claimed = format!("countersign:{}", volume.id());
    for (fs_type, source) in [("ramfs", &*claimed), ("tmpfs", "someone's")] {
        mount(source, volume.target(), fs_type, MountFlags::empty(), None).unwrap();
        fs::write(volume.target().join("precious"), "").unwrap();
        let expected =
            format!("{fs_type} from {source} is mounted at target_path and is not this volume: unmount it");
        for refused in [driver.publish(&volume).await, driver.unpublish(&volume).await] {
            let status = refused.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, &*expected));
        }
        assert!(volume.target().join("precious").exists());
    }
    assert_eq!(ground.mounts().len(), 2);
    assert_eq!(agent.calls(), []);
}

#[tokio::test]
async fn another_volume_of_ours_at_the_target_is_no_republish() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let (volume, other) = (ground.volume("pod-1"), ground.volume("pod-2"));
    fs::create_dir(volume.target()).unwrap();
    let source = format!("countersign:{}", other.id());
    mount(&*source, volume.target(), "tmpfs", MountFlags::empty(), None).unwrap();
    let status = driver.publish(&volume).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().starts_with(&format!("tmpfs from {source} is mounted")), "{}", status.message());
    // An unpublish takes it away all the same: it is one of ours, at the place of this volume.
    driver.unpublish(&volume).await.unwrap();
    ground.assert_clean(&volume);
}

#[tokio::test]
async fn a_directory_that_kubelet_did_not_make_is_asked_for() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    fs::remove_dir_all(volume.parent()).unwrap();
    let status = driver.publish(&volume).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().starts_with("the directory above target_path does not exist"),
        "{}",
        status.message()
    );
    assert!(!volume.parent().exists());
}

#[tokio::test]
async fn the_same_volume_twice_at_once_is_done_once() {
    let ground = Ground::new();
    let agent = FakeAgent::start_as(&ground.link(), Manner::Hang);
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    let (first, ()) = tokio::join!(driver.publish(&volume), async {
        eventually("the agent is asked", || agent.publishes() == 1).await;
        for busy in [driver.publish(&volume).await, driver.unpublish(&volume).await] {
            let status = busy.unwrap_err();
            assert_eq!(status.code(), Code::Aborted);
            assert_eq!(status.message(), "an operation on this volume is running: kubelet tries again");
        }
        agent.behave(Manner::Fill);
    });
    first.unwrap();
    assert_eq!(ground.mounts().len(), 1);
    assert_eq!(agent.publishes(), 1);
}

#[tokio::test]
async fn a_publish_while_unpublishing_waits_for_its_turn() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    agent.deafen(true);
    let (unpublished, ()) = tokio::join!(driver.unpublish(&volume), async {
        eventually("the agent is told", || agent.forgot(&volume.id())).await;
        assert_eq!(driver.publish(&volume).await.unwrap_err().code(), Code::Aborted);
        agent.deafen(false);
    });
    unpublished.unwrap();
    driver.publish(&volume).await.unwrap();
    assert_eq!(volume.read(), "token-1");
    assert!(agent.holds(&volume.id()));
}
