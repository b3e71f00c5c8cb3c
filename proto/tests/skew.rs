//! Peers of another version: messages as version 0.1.0 put them on the wire, and the same with fields of a version to
//! come. Field numbers are a promise: whoever changes one sees it here.

use countersign_proto::{agent, issuer};
use prost::Message;

/// A Publish of 0.1.0: volume `csi-1`, pod `pay/api-0` (uid `u`, service account `api0`), one attribute, one token, a
/// mailbox key of 16 bytes, fsGroup 0, 4 MiB.
const PUBLISH: &str = "0a056373692d3112150a0370617912056170692d301a01752204617069301a0f0a09612e6465762f6b6579120273 \
                       3a22090a04617564311201742a10000102030405060708090a0b0c0d0e0f38004080808002";

/// Field 999, a string: what a newer peer may add.
const UNKNOWN: &[u8] = &[0xba, 0x3e, 0x03, b'n', b'e', b'w'];

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn check_publish(message: &agent::PublishRequest) {
    assert_eq!(message.volume_id, "csi-1");
    let pod = message.pod.as_ref().unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("pay", "api-0", "u"));
    assert_eq!(pod.service_account, "api0");
    assert_eq!(message.attributes["a.dev/key"], "s:");
    assert_eq!((message.tokens[0].audience.as_str(), message.tokens[0].token.as_str()), ("aud1", "t"));
    assert_eq!(message.mailbox_key, (0..16).collect::<Vec<u8>>());
    assert_eq!((message.provisional, message.fs_group, message.capacity_bytes), (false, Some(0), 4 << 20));
}

#[test]
fn a_publish_of_0_1_0_is_read_and_written_as_it_was() {
    let old = bytes(PUBLISH);
    let message = agent::PublishRequest::decode(old.as_slice()).unwrap();
    check_publish(&message);
    assert_eq!(message.encode_to_vec(), old);
}

#[test]
fn what_a_newer_driver_adds_is_passed_over() {
    let newer = [bytes(PUBLISH).as_slice(), UNKNOWN].concat();
    check_publish(&agent::PublishRequest::decode(newer.as_slice()).unwrap());
    let list = agent::ReconcileRequest { volume_ids: vec!["csi-1".to_owned()] };
    let newer = [list.encode_to_vec().as_slice(), UNKNOWN].concat();
    assert_eq!(agent::ReconcileRequest::decode(newer.as_slice()).unwrap(), list);
    let held = agent::ReconcileResponse { held: vec!["csi-1".to_owned()] };
    let newer = [held.encode_to_vec().as_slice(), UNKNOWN].concat();
    assert_eq!(agent::ReconcileResponse::decode(newer.as_slice()).unwrap(), held);
    agent::PublishResponse::decode(UNKNOWN).unwrap();
    let answer = issuer::SignResponse {
        spiffe_id: "spiffe://td/ns/pay/sa/api".to_owned(),
        chain: vec![vec![1]],
        roots: vec![vec![2]],
        ticket: "t.i.c".to_owned(),
    };
    let newer = [answer.encode_to_vec().as_slice(), UNKNOWN].concat();
    assert_eq!(issuer::SignResponse::decode(newer.as_slice()).unwrap(), answer);
}

#[test]
fn a_reconcile_of_0_1_0_is_read_and_written_as_it_was() {
    // Volumes csi-1 and csi-2; both are held.
    let old = bytes("0a056373692d31 0a056373692d32");
    let ids = vec!["csi-1".to_owned(), "csi-2".to_owned()];
    let message = agent::ReconcileRequest::decode(old.as_slice()).unwrap();
    assert_eq!((&message.volume_ids, message.encode_to_vec()), (&ids, old.clone()));
    let answer = agent::ReconcileResponse::decode(old.as_slice()).unwrap();
    assert_eq!((&answer.held, answer.encode_to_vec()), (&ids, old));
    // An agent that says less than today's holds nothing.
    assert_eq!(agent::ReconcileResponse::decode([].as_slice()).unwrap().held, Vec::<String>::new());
}

#[test]
fn what_an_older_driver_leaves_out_has_its_default() {
    let message = agent::PublishRequest::decode(bytes("0a0161").as_slice()).unwrap();
    assert_eq!(message.volume_id, "a");
    assert_eq!((message.pod, message.fs_group, message.capacity_bytes), (None, None, 0));
    assert!(message.tokens.is_empty() && message.attributes.is_empty() && message.mailbox_key.is_empty());
}
