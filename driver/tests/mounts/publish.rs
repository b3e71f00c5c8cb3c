//! The first publish, both ways of cloning.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use serde_json::json;

use crate::kit::agent::{Call, FakeAgent, Manner};
use crate::kit::driver::Start;
use crate::kit::eventually;
use crate::kit::ground::{Ground, Line};

async fn a_volume_is_filled_and_attached(start: Start, clone: &str, calls: &[(bool, bool)]) {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = start.run(&ground).await;
    driver.connected().await;
    let volume = ground.volume("pod-1");
    agent.take_calls();
    driver.publish(&volume).await.unwrap();

    assert_eq!(volume.read(), "token-1");
    let mounts = ground.mounts();
    let [Line { point, options, fs_type, source, super_options }] = mounts.as_slice() else {
        panic!("{mounts:?}")
    };
    assert_eq!(point, volume.target().to_str().unwrap());
    assert_eq!(options, "ro,nosuid,nodev,noexec,relatime");
    assert_eq!((fs_type.as_str(), source), ("tmpfs", &format!("countersign:{}", volume.id())));
    // Three times 4 MiB, and 512 pages each.
    for option in ["rw", "size=18432k", "nr_inodes=8192", "mode=755"] {
        assert!(super_options.split(',').any(|set| set == option), "{option} in {super_options}");
    }
    let status = driver.status();
    assert_eq!(super_options.contains("noswap"), status["noswap"] == json!(true), "{super_options}");
    assert_eq!(status["clone"], json!(clone));
    assert_eq!((&status["volumes"], &status["registered"]), (&json!(1), &json!(false)));
    assert_eq!(status["version"], json!(env!("CARGO_PKG_VERSION")));

    // The pod's view cannot be written to, not even by root; the agent's can.
    let written = fs::write(volume.target().join("password"), "forged").unwrap_err();
    assert_eq!(Errno::from_io_error(&written), Some(Errno::ROFS));
    agent.refresh(&volume.id(), "token-2").unwrap();
    assert_eq!(volume.read(), "token-2");

    let seen: Vec<_> = agent
        .calls()
        .into_iter()
        .map(|call| match call {
            Call::Publish { id, keyed, provisional, .. } => {
                assert_eq!(id, volume.id());
                (keyed, provisional)
            }
            call @ (Call::Forget(_) | Call::Reconcile(_)) => panic!("{call:?}"),
        })
        .collect();
    assert_eq!(seen, calls);
    assert_eq!(agent.unclaimed(), 0);
    let sent = agent.last_publish();
    assert_eq!(sent.capacity_bytes, 4 << 20);
    assert_eq!(sent.fs_group, None);
    assert_eq!(
        sent.attributes,
        [("secret.countersign.dev/password".to_owned(), "vault:kv/data/a#b".to_owned())].into()
    );
    let pod = sent.pod.unwrap();
    assert_eq!((pod.namespace, pod.name, pod.uid), ("shop".into(), "payments-0".into(), "pod-1".into()));
    assert_eq!(pod.service_account, "payments");

    driver.unpublish(&volume).await.unwrap();
    ground.assert_clean(&volume);
    assert!(agent.forgot(&volume.id()) && !agent.holds(&volume.id()));
    assert_eq!(driver.status()["volumes"], json!(0));
}

#[tokio::test]
async fn a_volume_is_filled_and_attached_by_a_detached_clone() {
    a_volume_is_filled_and_attached(Start::default(), "detached", &[(true, false)]).await;
}

#[tokio::test]
async fn a_volume_is_filled_and_attached_by_an_attached_clone() {
    a_volume_is_filled_and_attached(Start::default().attached(), "attached", &[(true, true), (true, false)])
        .await;
}

#[tokio::test]
async fn nothing_is_seen_at_the_target_before_the_agent_says_so() {
    for start in [Start::default(), Start::default().attached()] {
        let ground = Ground::new();
        let agent = FakeAgent::start_as(&ground.link(), Manner::Hang);
        let driver = start.run(&ground).await;
        let volume = ground.volume("pod-1");
        let (published, ()) = tokio::join!(driver.publish(&volume), async {
            eventually("the agent is asked", || agent.publishes() == 1).await;
            assert_eq!(ground.mounts(), []);
            assert!(!volume.target().exists());
            agent.behave(Manner::Fill);
        });
        published.unwrap();
        assert_eq!(volume.read(), "token-1");
    }
}

#[tokio::test]
async fn the_pod_s_group_owns_its_files() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    // The one group that is mapped wherever this runs.
    let group = rustix::process::getegid().as_raw();
    driver.publish_request(volume.publish_for_group(group)).await.unwrap();
    let root = fs::metadata(volume.target()).unwrap();
    assert_eq!((root.mode() & 0o7777, root.gid()), (0o2750, group));
    assert_eq!(fs::metadata(volume.target().join("password")).unwrap().gid(), group);
    assert_eq!(agent.last_publish().fs_group, Some(group));
}

#[tokio::test]
async fn the_capacity_is_the_operator_s() {
    let ground = Ground::new();
    let agent = FakeAgent::start(&ground.link());
    let driver = Start::default().option("--volume-capacity=64KiB").run(&ground).await;
    let volume = ground.volume("pod-1");
    driver.publish(&volume).await.unwrap();
    assert!(ground.mounts()[0].super_options.contains("size=6336k"), "{:?}", ground.mounts());
    assert_eq!(agent.last_publish().capacity_bytes, 64 << 10);
}

#[tokio::test]
async fn the_kubelet_root_may_be_a_symlink() {
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    let link = ground.path().join("var-lib-kubelet");
    std::os::unix::fs::symlink(ground.root(), &link).unwrap();
    let driver = Start::default().option(format!("--kubelet-root={}", link.display())).run(&ground).await;
    let volume = ground.volume("pod-1").below(&link);
    driver.publish(&volume).await.unwrap();
    assert_eq!(volume.read(), "token-1");
    driver.kill().await;
    // And the mount table, which knows no symlinks, is still understood.
    let driver = Start::default().option(format!("--kubelet-root={}", link.display())).run(&ground).await;
    assert_eq!(driver.status()["volumes"], json!(1));
    driver.unpublish(&volume).await.unwrap();
    assert_eq!(ground.mounts(), []);
}

#[tokio::test]
async fn the_pods_directory_may_be_a_mount_whose_peers_get_the_volume_read_only() {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
    let ground = Ground::new();
    let _agent = FakeAgent::start(&ground.link());
    // As in the driver's container: `pods` is a shared mount there, and its peer is the host's.
    let (pods, host) = (ground.root().join("pods"), ground.path().join("host"));
    fs::create_dir(&host).unwrap();
    mount_bind(&pods, &pods).unwrap();
    mount_change(&pods, MountPropagationFlags::SHARED).unwrap();
    mount_bind(&pods, &host).unwrap();
    for start in [Start::default(), Start::default().attached()] {
        let driver = start.run(&ground).await;
        let volume = ground.volume("pod-1");
        driver.publish(&volume).await.unwrap();
        let seen = host.join("pod-1/volumes/kubernetes.io~csi/secrets/mount");
        assert_eq!(fs::read_to_string(seen.join("password")).unwrap(), "token-1");
        let written = fs::write(seen.join("password"), "forged").unwrap_err();
        assert_eq!(Errno::from_io_error(&written), Some(Errno::ROFS));
        driver.unpublish(&volume).await.unwrap();
        assert!(!seen.exists());
        driver.kill().await;
    }
}

#[tokio::test]
async fn kubelet_giving_up_leaves_nothing_half_done() {
    let ground = Ground::new();
    let agent = FakeAgent::start_as(&ground.link(), Manner::Hang);
    let driver = Start::default().run(&ground).await;
    let volume = ground.volume("pod-1");
    let gone = tokio::time::timeout(std::time::Duration::from_millis(300), driver.publish(&volume));
    assert!(gone.await.is_err());
    eventually("the agent is asked", || agent.publishes() == 1).await;
    assert_eq!(driver.publish(&volume).await.unwrap_err().code(), tonic::Code::Aborted);
    agent.behave(Manner::Fill);
    eventually("the call runs to its end", || ground.mounts().len() == 1).await;
    assert_eq!(volume.read(), "token-1");
    eventually("the volume is known", || driver.status()["volumes"] == json!(1)).await;
    driver.publish(&volume).await.unwrap();
    assert_eq!(agent.publishes(), 1);
}

#[tokio::test]
async fn two_volumes_do_not_wait_for_each_other() {
    let ground = Ground::new();
    let agent = FakeAgent::start_as(&ground.link(), Manner::Hang);
    let driver = Start::default().run(&ground).await;
    let (one, other) = (ground.volume("pod-1"), ground.volume("pod-2"));
    let (first, second, ()) = tokio::join!(driver.publish(&one), driver.publish(&other), async {
        eventually("the agent is asked for both", || agent.publishes() == 2).await;
        agent.behave(Manner::Fill);
    });
    first.unwrap();
    second.unwrap();
    assert_eq!(ground.mounts().len(), 2);
}
