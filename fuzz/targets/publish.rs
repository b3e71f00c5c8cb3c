//! The driver's guard over NodePublishVolume. `TOKEN` in a secret becomes something that must not be shown; an id
//! `RIGHT` becomes the one that belongs to the target, for no fuzzer finds a SHA-256.
#![no_main]

use countersign_driver::request::{Offer, Publish, Rules, Unpublish};
use countersign_driver::volume::{Place, VolumeId};
use countersign_fuzz::{CANARY, assert_readable, assert_secretive};
use countersign_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest};
use libfuzzer_sys::fuzz_target;
use prost::Message;

const ROOT: &str = "/k";
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

fuzz_target!(|bytes: &[u8]| {
    let Some((&switches, message)) = bytes.split_first() else { return };
    let Ok(mut request) = NodePublishVolumeRequest::decode(message) else { return };
    let place = Place::parse(ROOT, &request.target_path);
    if request.volume_id == "RIGHT"
        && let Some(place) = &place
    {
        request.volume_id = VolumeId::of(place).to_string();
    }
    for value in request.secrets.values_mut().chain(request.volume_context.get_mut(TOKENS)) {
        *value = value.replace("TOKEN", CANARY);
    }
    let unpublish = NodeUnpublishVolumeRequest {
        volume_id: request.volume_id.clone(),
        target_path: request.target_path.clone(),
    };
    match Unpublish::parse(&unpublish, ROOT) {
        Ok(unpublish) => assert_eq!(Some(unpublish.place), place),
        Err(error) => assert_readable(&error.to_string()),
    }

    let rules = Rules { root: ROOT.to_owned(), tokens_from_context: switches & 1 == 1 };
    let sent = request.clone();
    match Publish::parse(request, &rules) {
        Ok(publish) => {
            assert_eq!(publish.id.to_string(), sent.volume_id);
            assert_eq!(publish.id, VolumeId::of(&publish.place));
            assert_eq!(publish.pod.uid, publish.place.pod_uid());
            assert!(sent.readonly && !publish.tokens.is_empty());
            assert!(publish.attributes.keys().all(|key| !key.starts_with("csi.storage.k8s.io/")));
            assert_secretive(&format!("{:?}", publish.tokens), bytes);
            let agent = publish.for_agent(b"key", false, &Offer { capacity: 1, signals: false });
            assert_eq!(agent.tokens.len(), publish.tokens.len());
            assert_secretive(&format!("{agent:?}"), bytes);
        }
        Err(error) => {
            assert_readable(&error.to_string());
            assert_secretive(&format!("{error} {error:?}"), bytes);
        }
    }
});
