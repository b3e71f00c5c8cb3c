//! What a volume is called, and where kubelet wants it.

use std::fmt::{self, Debug, Display, Formatter};

use sha2::{Digest, Sha256};

/// What every volume id of kubelet's inline ephemeral volumes begins with.
const ID_PREFIX: &str = "csi-";
/// Longest name of one path component that Linux takes, in bytes.
const LONGEST_NAME: usize = 255;

/// The place of a volume under the kubelet root:
/// `pods/<pod uid>/volumes/kubernetes.io~csi/<volume name>/mount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pod_uid: Box<str>,
    name: Box<str>,
}

impl Place {
    /// Reads a target path. It must be written exactly as kubelet writes it for the kubelet root `root`
    /// (absolute, no slash at its end); `None` otherwise.
    #[must_use]
    pub fn parse(root: &str, target: &str) -> Option<Self> {
        let below = target.strip_prefix(root)?.strip_prefix("/pods/")?.strip_suffix("/mount")?;
        let (pod_uid, name) = below.split_once("/volumes/kubernetes.io~csi/")?;
        (is_name(pod_uid) && is_name(name)).then(|| Self { pod_uid: pod_uid.into(), name: name.into() })
    }

    /// The pod's uid as the path has it.
    #[must_use]
    pub fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// The directory that holds the mount point, relative to the `pods` directory.
    #[must_use]
    pub fn parent(&self) -> String {
        format!("{}/volumes/kubernetes.io~csi/{}", self.pod_uid, self.name)
    }
}

/// One path component that is a name and nothing else.
fn is_name(text: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len())
        && text != "."
        && text != ".."
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Kubelet's id of an inline ephemeral volume: `csi-` and the SHA-256 of the pod's uid followed by the volume's
/// name, in lower-case hex. Kept as the 32 bytes of the digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId([u8; 32]);

impl VolumeId {
    /// The id kubelet gives to the volume at `place`.
    #[must_use]
    pub fn of(place: &Place) -> Self {
        let mut hash = Sha256::new();
        hash.update(place.pod_uid.as_bytes());
        hash.update(place.name.as_bytes());
        Self(hash.finalize().into())
    }

    /// Reads an id as kubelet writes it; `None` when it is not one of kubelet's.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(ID_PREFIX)?.as_bytes();
        let mut digest = [0; 32];
        if hex.len() != 2 * digest.len() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
            let (high, low) = (pair.first()?, pair.last()?);
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        Some(Self(digest))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl Display for VolumeId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(ID_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Debug for VolumeId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "/var/lib/kubelet";
    const TARGET: &str = "/var/lib/kubelet/pods/4f0b/volumes/kubernetes.io~csi/secrets/mount";

    #[test]
    fn a_target_of_kubelet_is_read() {
        let place = Place::parse(ROOT, TARGET).unwrap();
        assert_eq!(place.pod_uid(), "4f0b");
        assert_eq!(place.parent(), "4f0b/volumes/kubernetes.io~csi/secrets");
    }

    #[test]
    fn any_other_shape_is_not() {
        for target in [
            "",
            "/",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount/",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi//mount",
            "/var/lib/kubelet/pods//volumes/kubernetes.io~csi/v/mount",
            "/var/lib/kubelet/pods/../volumes/kubernetes.io~csi/v/mount",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/../mount",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/a/b/mount",
            "/var/lib/kubelet/pods/u/../u/volumes/kubernetes.io~csi/v/mount",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~nfs/v/mount",
            "/var/lib/kubelet//pods/u/volumes/kubernetes.io~csi/v/mount",
            "/elsewhere/pods/u/volumes/kubernetes.io~csi/v/mount",
            "var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v\0/mount",
        ] {
            assert_eq!(Place::parse(ROOT, target), None, "{target:?}");
        }
    }

    #[test]
    fn the_id_is_the_digest_of_uid_and_name() {
        // `printf 4f0bsecrets | sha256sum`
        let expected = "csi-aa036e08a9120a3e89847748ebb59fc5a7d7fb2bd8e102aab5e22b26918c7c22";
        let id = VolumeId::of(&Place::parse(ROOT, TARGET).unwrap());
        assert_eq!(id.to_string(), expected);
        assert_eq!(VolumeId::parse(&id.to_string()), Some(id));
    }

    #[test]
    fn an_id_of_another_shape_is_none() {
        let good = VolumeId::of(&Place::parse(ROOT, TARGET).unwrap()).to_string();
        for bad in [
            &good[1..],
            &good[..good.len() - 1],
            "csi-",
            "",
            "sanity-node-1",
            &good.to_uppercase().replace("CSI", "csi"),
        ] {
            assert_eq!(VolumeId::parse(bad), None, "{bad:?}");
        }
    }
}
