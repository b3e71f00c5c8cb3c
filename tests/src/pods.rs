//! Pods and their volumes, as far as a CSI driver gets to see them.

use std::collections::BTreeMap;

use rand::Rng;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
    /// `securityContext.fsGroup`.
    pub fs_group: Option<u32>,
}

impl Pod {
    /// A pod with a uid of its own and no fsGroup.
    pub fn new(namespace: &str, name: &str, service_account: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid(),
            service_account: service_account.to_owned(),
            fs_group: None,
        }
    }

    /// The same pod with this fsGroup.
    #[must_use]
    pub fn with_fs_group(mut self, gid: u32) -> Self {
        self.fs_group = Some(gid);
        self
    }
}

/// An inline CSI volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name in the pod.
    pub name: String,
    /// `csi.volumeAttributes`.
    pub attributes: BTreeMap<String, String>,
    /// `csi.readOnly`.
    pub read_only: bool,
}

impl Volume {
    /// A read-only volume named `secrets` that asks for nothing yet.
    pub fn new() -> Self {
        Self { name: "secrets".to_owned(), attributes: BTreeMap::new(), read_only: true }
    }

    /// The same volume with one more attribute.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.attributes.insert(key.to_owned(), value.into());
        self
    }

    /// Asks for a file that holds a secret.
    #[must_use]
    pub fn secret(self, file: &str, reference: &str) -> Self {
        self.with(&format!("secret.countersign.dev/{file}"), reference)
    }

    /// Asks for a file made from a template.
    #[must_use]
    pub fn template(self, file: &str, template: &str) -> Self {
        self.with(&format!("template.countersign.dev/{file}"), template)
    }

    /// Asks for a JWT-SVID for an audience.
    #[must_use]
    pub fn jwt(self, file: &str, audience: &str) -> Self {
        self.with(&format!("jwt.countersign.dev/{file}"), audience)
    }

    /// Asks for the X.509-SVID as `tls.crt`, `tls.key` and `ca.crt`.
    #[must_use]
    pub fn x509(self) -> Self {
        self.with("svid.countersign.dev/x509", "tls.crt,tls.key,ca.crt")
    }

    /// Sets how often secrets are looked at again.
    #[must_use]
    pub fn refresh(self, every: &str) -> Self {
        self.with("countersign.dev/refresh", every)
    }
}

impl Default for Volume {
    fn default() -> Self {
        Self::new()
    }
}

/// A random uid (RFC 9562, version 4).
pub fn uid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('?'));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_looks_like_one() {
        let uid = uid();
        let lengths: Vec<_> = uid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{uid}");
        assert_eq!(uid.as_bytes()[14], b'4');
        assert_ne!(uid, super::uid());
    }
}
