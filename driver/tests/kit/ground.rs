//! A kubelet directory in a mount namespace of the test's own.

use std::fs;
use std::path::{Path, PathBuf};

use countersign_driver::mountinfo;
use countersign_driver::volume::{Place, VolumeId};
use countersign_proto::csi::volume_capability::{AccessType, MountVolume};
use countersign_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

/// Takes the calling thread, and all threads and processes it starts, into a mount namespace of its own.
///
/// Fails the test where no mounts are possible: such a test is left out by its name, never by its own decision.
fn private_mounts() {
    #[expect(deprecated, reason = "its danger is in other flags than this one")]
    let unshared = rustix::thread::unshare(UnshareFlags::NEWNS);
    unshared.expect("no mounts are possible here: run as root, or under `unshare -Urm`");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
}

/// The directories kubelet, driver and agent meet in.
pub struct Ground {
    directory: TempDir,
}

impl Ground {
    pub fn new() -> Self {
        private_mounts();
        let ground = Self { directory: tempfile::Builder::new().prefix("cs").tempdir().unwrap() };
        for directory in [ground.root().join("pods"), ground.registry(), ground.link()] {
            fs::create_dir_all(directory).unwrap();
        }
        ground
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The kubelet root.
    pub fn root(&self) -> PathBuf {
        self.path().join("kubelet")
    }

    pub fn registry(&self) -> PathBuf {
        self.root().join("plugins_registry")
    }

    pub fn link(&self) -> PathBuf {
        self.path().join("link")
    }

    pub fn csi_socket(&self) -> PathBuf {
        self.root().join("plugins/csi.countersign.dev/csi.sock")
    }

    pub fn registration_socket(&self) -> PathBuf {
        self.registry().join("csi.countersign.dev@reg.sock")
    }

    /// A pod's volume, with the directory that kubelet makes for it.
    pub fn volume(&self, pod: &str) -> Volume {
        let volume = Volume { root: self.root(), pod: pod.to_owned(), name: "secrets".to_owned() };
        fs::create_dir_all(volume.parent()).unwrap();
        fs::write(volume.parent().join("vol_data.json"), "{}").unwrap();
        volume
    }

    /// What is mounted below the kubelet root.
    pub fn mounts(&self) -> Vec<Line> {
        lines(&self.root())
    }

    /// Fails unless nothing of a volume is left on the node: no mount, no target.
    pub fn assert_clean(&self, volume: &Volume) {
        assert_eq!(self.mounts(), [], "mounts are left");
        assert!(!volume.target().exists(), "the target is left");
        assert!(volume.parent().join("vol_data.json").exists(), "kubelet's own file is gone");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for mount in lines(self.path()).iter().rev() {
            unmount(&*mount.point, UnmountFlags::DETACH).ok();
        }
    }
}

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub point: String,
    pub options: String,
    pub fs_type: String,
    pub source: String,
    pub super_options: String,
}

fn lines(below: &Path) -> Vec<Line> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let mut lines = Vec::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let dash = fields.iter().position(|field| *field == "-").unwrap();
        if Path::new(fields[4]).starts_with(below) {
            // The driver's own reader has to agree with this one.
            let read = mountinfo::Mount::parse(line).unwrap();
            assert_eq!((&*read.point, &*read.source), (fields[4], fields[dash + 2]));
            lines.push(Line {
                point: fields[4].to_owned(),
                options: fields[5].to_owned(),
                fs_type: fields[dash + 1].to_owned(),
                source: fields[dash + 2].to_owned(),
                super_options: fields[dash + 3].to_owned(),
            });
        }
    }
    lines
}

/// A volume of a pod.
#[derive(Clone, Debug)]
pub struct Volume {
    root: PathBuf,
    pub pod: String,
    pub name: String,
}

impl Volume {
    /// The directory kubelet makes.
    pub fn parent(&self) -> PathBuf {
        self.root.join("pods").join(&self.pod).join("volumes/kubernetes.io~csi").join(&self.name)
    }

    pub fn target(&self) -> PathBuf {
        self.parent().join("mount")
    }

    /// The same volume seen through another path of the kubelet root.
    pub fn below(&self, root: &Path) -> Self {
        Self { root: root.to_owned(), ..self.clone() }
    }

    pub fn id(&self) -> String {
        let (root, target) = (self.root.to_str().unwrap(), self.target());
        VolumeId::of(&Place::parse(root, target.to_str().unwrap()).unwrap()).to_string()
    }

    /// What kubelet sends to publish it.
    pub fn publish(&self) -> NodePublishVolumeRequest {
        self.publish_with("token-1")
    }

    pub fn publish_with(&self, token: &str) -> NodePublishVolumeRequest {
        let key = |name: &str| format!("csi.storage.k8s.io/{name}");
        let tokens = format!(
            r#"{{"countersign":{{"token":"{token}","expirationTimestamp":"2027-01-01T00:00:00Z"}}}}"#
        );
        NodePublishVolumeRequest {
            volume_id: self.id(),
            target_path: self.target().to_str().unwrap().to_owned(),
            volume_capability: Some(VolumeCapability {
                access_mode: None,
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            readonly: true,
            secrets: [(key("serviceAccount.tokens"), tokens)].into(),
            volume_context: [
                (key("pod.name"), "payments-0".to_owned()),
                (key("pod.namespace"), "shop".to_owned()),
                (key("pod.uid"), self.pod.clone()),
                (key("serviceAccount.name"), "payments".to_owned()),
                (key("ephemeral"), "true".to_owned()),
                ("secret.countersign.dev/password".to_owned(), "vault:kv/data/a#b".to_owned()),
            ]
            .into(),
            ..NodePublishVolumeRequest::default()
        }
    }

    /// What kubelet sends for a pod that wants to be told of a change.
    pub fn publish_on_change(&self, on_change: &str) -> NodePublishVolumeRequest {
        let mut request = self.publish();
        request.volume_context.insert("countersign.dev/on-change".to_owned(), on_change.to_owned());
        request
    }

    /// What kubelet sends to publish it for a pod with an fsGroup.
    pub fn publish_for_group(&self, group: u32) -> NodePublishVolumeRequest {
        let mut request = self.publish();
        let mount = MountVolume { volume_mount_group: group.to_string(), ..MountVolume::default() };
        request.volume_capability =
            Some(VolumeCapability { access_mode: None, access_type: Some(AccessType::Mount(mount)) });
        request
    }

    /// What kubelet sends to unpublish it.
    pub fn unpublish(&self) -> NodeUnpublishVolumeRequest {
        let target_path = self.target().to_str().unwrap().to_owned();
        NodeUnpublishVolumeRequest { volume_id: self.id(), target_path }
    }

    /// What a container reads.
    pub fn read(&self) -> String {
        fs::read_to_string(self.target().join("password")).unwrap()
    }
}
