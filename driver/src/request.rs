//! A publish request, read once: what comes out of here cannot be wrong, and is not looked at again.
//!
//! Kubelet writes the keys under `csi.storage.k8s.io/` over those of the pod's author only while the
//! `CSIDriver` object has `podInfoOnMount: true`. So they are not believed alone: the pod's uid has to be the one in the target
//! path, the volume id has to be the digest of uid and volume name, tokens are taken from `secrets`, where no
//! author can write, and keys under that prefix that kubelet does not send are refused.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::mem::take;

use countersign_proto::agent;
use countersign_proto::csi::volume_capability::{AccessType, MountVolume};
use countersign_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest};
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use crate::error::Error;
use crate::volume::{Place, VolumeId};

/// Prefix of kubelet's own keys.
const KUBELET: &str = "csi.storage.k8s.io/";
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const SERVICE_ACCOUNT: &str = "csi.storage.k8s.io/serviceAccount.name";
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Bytes of a key of the author's that an error shows at most.
const SHOWN: usize = 128;

/// What requests are read against.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The kubelet root as kubelet writes it.
    pub root: String,
    /// Take the tokens from the volume context, where kubelet 1.34 and older put them.
    pub tokens_from_context: bool,
}

/// The pod a volume is for, as kubelet names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; the one in the target path.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
}

/// A service account token bound to the pod.
pub struct Token {
    /// Who it is for.
    pub audience: String,
    /// The token itself; wiped when dropped.
    pub token: Zeroizing<String>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// What a volume gets from this driver, whatever it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Most bytes of one generation of its files.
    pub capacity: u64,
    /// Whether signals are sent to its pod.
    pub signals: bool,
}

/// A publish that has passed the guard.
#[derive(Debug)]
pub struct Publish {
    /// The volume.
    pub id: VolumeId,
    /// Where it goes.
    pub place: Place,
    /// Who gets it.
    pub pod: Pod,
    /// What the pod's author asked for.
    pub attributes: HashMap<String, String>,
    /// The pod's tokens, one an audience; at least one.
    pub tokens: Vec<Token>,
    /// The pod's fsGroup.
    pub fs_group: Option<u32>,
}

impl Publish {
    /// Reads and judges a request. Every copy of a token in it is wiped, whatever the outcome.
    ///
    /// # Errors
    /// All of them are `INVALID_ARGUMENT` and say what to change; none prints a value of the request.
    pub fn parse(mut request: NodePublishVolumeRequest, rules: &Rules) -> Result<Self, Error> {
        let mut secrets = Wiped(take(&mut request.secrets));
        let mut context = Wiped(take(&mut request.volume_context));

        required("volume_id", &request.volume_id)?;
        required("target_path", &request.target_path)?;
        let capability = request.volume_capability.ok_or(Error::Missing("volume_capability"))?;
        let fs_group = match capability.access_type {
            None => return Err(Error::Missing("volume_capability.access_type")),
            Some(AccessType::Block(_)) => return Err(Error::Block),
            Some(AccessType::Mount(mount)) => group(&mount)?,
        };
        if !request.publish_context.is_empty() {
            return Err(Error::NotTaken { field: "publish_context" });
        }
        if !request.staging_target_path.is_empty() {
            return Err(Error::NotTaken { field: "staging_target_path" });
        }
        if !request.readonly {
            return Err(Error::Writable);
        }

        let place = Place::parse(&rules.root, &request.target_path)
            .ok_or_else(|| Error::TargetShape { root: rules.root.clone() })?;
        let pod = Pod {
            namespace: context.pod_info(POD_NAMESPACE)?,
            name: context.pod_info(POD_NAME)?,
            uid: context.pod_info(POD_UID)?,
            service_account: context.pod_info(SERVICE_ACCOUNT)?,
        };
        if context.0.remove(EPHEMERAL).as_deref() != Some("true") {
            return Err(Error::Persistent);
        }
        if pod.uid != place.pod_uid() {
            return Err(Error::OtherPod);
        }
        let id = VolumeId::of(&place);
        if VolumeId::parse(&request.volume_id) != Some(id) {
            return Err(Error::OtherVolume);
        }

        let in_secrets = secrets.0.remove(TOKENS).map(Zeroizing::new);
        let in_context =
            if rules.tokens_from_context { context.0.remove(TOKENS).map(Zeroizing::new) } else { None };
        if let Some(key) = first(context.0.keys().filter(|key| key.starts_with(KUBELET))) {
            return Err(Error::Forged { key });
        }
        if let Some(key) = first(secrets.0.keys()) {
            return Err(Error::SecretReference { key });
        }
        let tokens = tokens(&in_secrets.or(in_context).ok_or(Error::NoTokens)?)?;
        Ok(Self { id, place, pod, attributes: take(&mut context.0), tokens, fs_group })
    }

    /// A number that tells this request from others of the same process: of what the agent is sent.
    #[must_use]
    pub fn fingerprint(&self, hasher: &RandomState) -> u64 {
        // The maps have no order: their entries are hashed one by one and added up.
        let attributes = self
            .attributes
            .iter()
            .fold(0_u64, |sum, entry| sum.wrapping_add(hasher.hash_one(("attribute", entry))));
        let tokens = self.tokens.iter().fold(0_u64, |sum, token| {
            sum.wrapping_add(hasher.hash_one(("token", &token.audience, token.token.as_str())))
        });
        hasher.hash_one((&self.pod, self.fs_group, attributes, tokens))
    }

    /// The request to the agent. `key` names the descriptor sent through the mailbox; empty when none was sent.
    #[must_use]
    pub fn for_agent(&self, key: &[u8], provisional: bool, offer: &Offer) -> agent::PublishRequest {
        agent::PublishRequest {
            volume_id: self.id.to_string(),
            pod: Some(agent::Pod {
                namespace: self.pod.namespace.clone(),
                name: self.pod.name.clone(),
                uid: self.pod.uid.clone(),
                service_account: self.pod.service_account.clone(),
            }),
            attributes: self.attributes.clone(),
            tokens: self
                .tokens
                .iter()
                .map(|token| agent::Token {
                    audience: token.audience.clone(),
                    token: token.token.to_string(),
                })
                .collect(),
            mailbox_key: key.to_vec(),
            provisional,
            fs_group: self.fs_group,
            capacity_bytes: offer.capacity,
            signals: offer.signals,
        }
    }
}

/// Where an unpublish is to happen. The id in the request names the same volume and is only looked at for being
/// there: what lies at the target decides, so that an unpublish always ends.
#[derive(Debug)]
pub struct Unpublish {
    /// The volume that belongs at the target.
    pub id: VolumeId,
    /// The target.
    pub place: Place,
}

impl Unpublish {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::TargetShape`].
    pub fn parse(request: &NodeUnpublishVolumeRequest, root: &str) -> Result<Self, Error> {
        required("volume_id", &request.volume_id)?;
        required("target_path", &request.target_path)?;
        let place = Place::parse(root, &request.target_path)
            .ok_or_else(|| Error::TargetShape { root: root.to_owned() })?;
        Ok(Self { id: VolumeId::of(&place), place })
    }
}

fn required(field: &'static str, value: &str) -> Result<(), Error> {
    if value.is_empty() { Err(Error::Missing(field)) } else { Ok(()) }
}

fn group(mount: &MountVolume) -> Result<Option<u32>, Error> {
    if !mount.fs_type.is_empty() {
        return Err(Error::NotTaken { field: "fsType" });
    }
    if !mount.mount_flags.is_empty() {
        return Err(Error::NotTaken { field: "mount_flags" });
    }
    let text = mount.volume_mount_group.as_str();
    match text.parse() {
        // No sign, no zero in front: exactly what kubelet prints.
        Ok(group) if !text.starts_with(['+', '0']) || text == "0" => Ok(Some(group)),
        Err(_) if text.is_empty() => Ok(None),
        Ok(_) | Err(_) => Err(Error::Group),
    }
}

/// The first of some keys in their order, fit to be shown: escaped, and cut short.
fn first<Key: AsRef<str> + Ord>(keys: impl Iterator<Item = Key>) -> Option<String> {
    let key = keys.min()?;
    let key = key.as_ref();
    let mut shown: String = key.escape_debug().take(SHOWN).collect();
    if shown.len() < key.len() {
        shown.push('…');
    }
    Some(shown)
}

/// One entry of the JSON object kubelet sends.
#[derive(Deserialize)]
struct Entry<'json> {
    // Borrowed, so that the parser makes no copy of its own: a JWT needs no escapes in JSON.
    token: &'json str,
}

fn tokens(json: &str) -> Result<Vec<Token>, Error> {
    // The parser's error is dropped: it could quote what it stumbled over.
    let entries: HashMap<String, Entry<'_>> =
        serde_json::from_str(json).map_err(|_| Error::MalformedTokens)?;
    if entries.is_empty() {
        return Err(Error::NoTokens);
    }
    if entries.values().any(|entry| entry.token.is_empty()) {
        return Err(Error::MalformedTokens);
    }
    let mut tokens: Vec<Token> = entries
        .into_iter()
        .map(|(audience, entry)| Token { audience, token: Zeroizing::new(entry.token.to_owned()) })
        .collect();
    tokens.sort_unstable_by(|one, other| one.audience.cmp(&other.audience));
    Ok(tokens)
}

/// A map of a request whose values are wiped when it is dropped.
struct Wiped(HashMap<String, String>);

impl Wiped {
    fn pod_info(&mut self, key: &'static str) -> Result<String, Error> {
        self.0.remove(key).filter(|value| !value.is_empty()).ok_or(Error::NoPodInfo { key })
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

#[cfg(test)]
mod tests;
