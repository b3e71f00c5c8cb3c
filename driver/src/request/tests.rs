use countersign_proto::csi::VolumeCapability;
use countersign_proto::csi::volume_capability::BlockVolume;
use tonic::{Code, Status};

use super::*;

const ROOT: &str = "/var/lib/kubelet";
const UID: &str = "0b5c6d1e-3a52-4c0e-9d3a-2f6d9f1b7a10";
const SECRET_JWT: &str = "eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl";

fn rules() -> Rules {
    Rules { root: ROOT.into(), tokens_from_context: false }
}

fn target() -> String {
    format!("{ROOT}/pods/{UID}/volumes/kubernetes.io~csi/secrets/mount")
}

fn map(entries: &[(&str, &str)]) -> HashMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn tokens_json() -> String {
    format!(
        r#"{{"countersign":{{"token":"{SECRET_JWT}","expirationTimestamp":"2026-11-23T12:00:00Z"}},"":{{"token":"b"}}}}"#
    )
}

/// What kubelet 1.36 sends for an inline volume.
fn sent() -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: VolumeId::of(&Place::parse(ROOT, &target()).unwrap()).to_string(),
        publish_context: HashMap::new(),
        staging_target_path: String::new(),
        target_path: target(),
        volume_capability: Some(VolumeCapability {
            access_mode: None,
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: String::new(),
                mount_flags: vec![],
                volume_mount_group: "2000".into(),
            })),
        }),
        readonly: true,
        secrets: map(&[(TOKENS, &tokens_json())]),
        volume_context: map(&[
            (POD_NAME, "payments-0"),
            (POD_NAMESPACE, "shop"),
            (POD_UID, UID),
            (SERVICE_ACCOUNT, "payments"),
            (EPHEMERAL, "true"),
            ("secret.countersign.dev/db-password", "vault:kv/data/payments#password"),
        ]),
    }
}

fn mount(request: &mut NodePublishVolumeRequest) -> &mut MountVolume {
    match request.volume_capability.as_mut().and_then(|capability| capability.access_type.as_mut()) {
        Some(AccessType::Mount(mount)) => mount,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_kubelet_sends_is_taken() {
    let publish = Publish::parse(sent(), &rules()).unwrap();
    assert_eq!(publish.pod.namespace, "shop");
    assert_eq!(publish.pod.name, "payments-0");
    assert_eq!(publish.pod.uid, UID);
    assert_eq!(publish.pod.service_account, "payments");
    assert_eq!(
        publish.attributes,
        map(&[("secret.countersign.dev/db-password", "vault:kv/data/payments#password")])
    );
    assert_eq!(publish.fs_group, Some(2000));
    let audiences: Vec<_> = publish.tokens.iter().map(|token| token.audience.as_str()).collect();
    assert_eq!(audiences, ["", "countersign"]);
    assert_eq!(publish.tokens[1].token.as_str(), SECRET_JWT);
}

type Change = fn(&mut NodePublishVolumeRequest);

/// One row a bad input: what is changed, and the whole message.
const REFUSED: &[(&str, Change, &str)] = &[
    ("no volume id", |r| r.volume_id.clear(), "volume_id is missing from the request"),
    ("no target", |r| r.target_path.clear(), "target_path is missing from the request"),
    ("no capability", |r| r.volume_capability = None, "volume_capability is missing from the request"),
    (
        "no access type",
        |r| r.volume_capability = Some(VolumeCapability { access_type: None, access_mode: None }),
        "volume_capability.access_type is missing from the request",
    ),
    (
        "block",
        |r| {
            let access_type = Some(AccessType::Block(BlockVolume {}));
            r.volume_capability = Some(VolumeCapability { access_type, access_mode: None });
        },
        "a block volume was asked for: countersign volumes are directories, use volumeMounts",
    ),
    (
        "fs type",
        |r| mount(r).fs_type = "ext4".into(),
        "fsType is set: countersign volumes take none, remove it",
    ),
    (
        "mount flags",
        |r| mount(r).mount_flags = vec!["dev".into()],
        "mount_flags is set: countersign volumes take none, remove it",
    ),
    (
        "publish context",
        |r| r.publish_context = map(&[("a", "b")]),
        "publish_context is set: countersign volumes take none, remove it",
    ),
    (
        "staging path",
        |r| r.staging_target_path = "/x".into(),
        "staging_target_path is set: countersign volumes take none, remove it",
    ),
    (
        "group by name",
        |r| mount(r).volume_mount_group = "staff".into(),
        "volume_mount_group is not a group id in decimal: kubelet takes it from the pod's fsGroup",
    ),
    (
        "group with a sign",
        |r| mount(r).volume_mount_group = "+5".into(),
        "volume_mount_group is not a group id in decimal: kubelet takes it from the pod's fsGroup",
    ),
    (
        "group too large",
        |r| mount(r).volume_mount_group = "4294967296".into(),
        "volume_mount_group is not a group id in decimal: kubelet takes it from the pod's fsGroup",
    ),
    (
        "writable",
        |r| r.readonly = false,
        "the volume is writable: set `readOnly: true` under the volume's csi section of the pod",
    ),
    (
        "persistent",
        |r| drop(r.volume_context.insert(EPHEMERAL.into(), "false".into())),
        "persistent volumes are not offered: write the volume inline into the pod, under `csi:` with `driver:` and \
         `volumeAttributes:`",
    ),
    (
        "ephemeral not said",
        |r| drop(r.volume_context.remove(EPHEMERAL)),
        "persistent volumes are not offered: write the volume inline into the pod, under `csi:` with `driver:` and \
         `volumeAttributes:`",
    ),
    (
        "no pod name",
        |r| drop(r.volume_context.remove(POD_NAME)),
        "csi.storage.k8s.io/pod.name is missing: the CSIDriver object of this driver needs `podInfoOnMount: true`",
    ),
    (
        "empty namespace",
        |r| drop(r.volume_context.insert(POD_NAMESPACE.into(), String::new())),
        "csi.storage.k8s.io/pod.namespace is missing: the CSIDriver object of this driver needs `podInfoOnMount: true`",
    ),
    (
        "no pod uid",
        |r| drop(r.volume_context.remove(POD_UID)),
        "csi.storage.k8s.io/pod.uid is missing: the CSIDriver object of this driver needs `podInfoOnMount: true`",
    ),
    (
        "no service account",
        |r| drop(r.volume_context.remove(SERVICE_ACCOUNT)),
        "csi.storage.k8s.io/serviceAccount.name is missing: the CSIDriver object of this driver needs \
         `podInfoOnMount: true`",
    ),
    (
        "no pod info at all",
        |r| r.volume_context.clear(),
        "csi.storage.k8s.io/pod.namespace is missing: the CSIDriver object of this driver needs `podInfoOnMount: true`",
    ),
    (
        "forged key",
        |r| drop(r.volume_context.insert("csi.storage.k8s.io/pod.labels".into(), SECRET_JWT.into())),
        "volumeAttributes holds csi.storage.k8s.io/pod.labels: keys under csi.storage.k8s.io/ are kubelet's own, \
         remove it",
    ),
    (
        "forged tokens",
        |r| drop(r.volume_context.insert(TOKENS.into(), tokens_json())),
        "volumeAttributes holds csi.storage.k8s.io/serviceAccount.tokens: keys under csi.storage.k8s.io/ are \
         kubelet's own, remove it",
    ),
    (
        "a secret",
        |r| drop(r.secrets.insert("password".into(), "hunter2".into())),
        "the volume's nodePublishSecretRef brings the key password: countersign takes no Secret, remove it",
    ),
    (
        "no tokens",
        |r| r.secrets.clear(),
        "the pod's service account tokens are missing: the CSIDriver object of this driver needs `tokenRequests` and \
         `serviceAccountTokenInSecrets: true` (kubelet 1.34 and older: start the driver with --tokens-from-context)",
    ),
    (
        "an empty object of tokens",
        |r| r.secrets = map(&[(TOKENS, "{}")]),
        "the pod's service account tokens are missing: the CSIDriver object of this driver needs `tokenRequests` and \
         `serviceAccountTokenInSecrets: true` (kubelet 1.34 and older: start the driver with --tokens-from-context)",
    ),
    (
        "tokens that are no JSON",
        |r| r.secrets = map(&[(TOKENS, SECRET_JWT)]),
        "the pod's service account tokens are not the JSON object that kubelet sends",
    ),
    (
        "a token that is a number",
        |r| r.secrets = map(&[(TOKENS, r#"{"a":{"token":5}}"#)]),
        "the pod's service account tokens are not the JSON object that kubelet sends",
    ),
    (
        "an empty token",
        |r| r.secrets = map(&[(TOKENS, r#"{"a":{"token":""}}"#)]),
        "the pod's service account tokens are not the JSON object that kubelet sends",
    ),
    (
        "another target",
        |r| r.target_path = "/mnt/target".into(),
        "target_path is not <kubelet root>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount below /var/lib/kubelet: \
         --kubelet-root must be what kubelet runs with",
    ),
    (
        "another pod",
        |r| drop(r.volume_context.insert(POD_UID.into(), "another".into())),
        "csi.storage.k8s.io/pod.uid is not the pod uid in target_path: the request is forged",
    ),
    (
        "another volume",
        |r| r.volume_id = format!("csi-{}", "0".repeat(64)),
        "volume_id is not csi- and the sha256 of pod uid and volume name: the request is forged",
    ),
];

#[test]
fn what_is_wrong_is_named() {
    for (name, change, message) in REFUSED {
        let mut request = sent();
        change(&mut request);
        let status = Status::from(Publish::parse(request, &rules()).expect_err(name));
        assert_eq!(status.code(), Code::InvalidArgument, "{name}");
        assert_eq!(status.message(), *message, "{name}");
        for secret in [SECRET_JWT, "hunter2"] {
            assert!(!format!("{status:?}").contains(secret), "{name}");
        }
    }
}

#[test]
fn no_refusal_shows_a_long_or_wild_key_in_full() {
    let mut request = sent();
    request.volume_context.insert(format!("{KUBELET}\n{}", "x".repeat(4000)), String::new());
    let message = Publish::parse(request, &rules()).unwrap_err().to_string();
    assert!(message.len() < 400 && message.contains("\\n") && !message.contains('\n'), "{message}");
}

#[test]
fn older_kubelets_put_tokens_into_the_context() {
    let mut request = sent();
    request.volume_context.insert(TOKENS.into(), take(&mut request.secrets).remove(TOKENS).unwrap());
    let rules = Rules { tokens_from_context: true, ..rules() };
    let publish = Publish::parse(request, &rules).unwrap();
    assert_eq!(publish.tokens.len(), 2);
    assert!(!publish.attributes.contains_key(TOKENS));
}

#[test]
fn tokens_of_a_pod_without_a_group() {
    let mut request = sent();
    mount(&mut request).volume_mount_group.clear();
    assert_eq!(Publish::parse(request, &rules()).unwrap().fs_group, None);
}

#[test]
fn the_fingerprint_is_of_what_the_agent_is_sent() {
    let hasher = RandomState::new();
    let print = |change: &dyn Fn(&mut NodePublishVolumeRequest)| {
        let mut request = sent();
        change(&mut request);
        Publish::parse(request, &rules()).unwrap().fingerprint(&hasher)
    };
    let same = print(&|_| {});
    assert_eq!(print(&|_| {}), same);
    let others = [
        print(&|r| drop(r.volume_context.insert("a".into(), "b".into()))),
        print(&|r| drop(r.volume_context.insert("b".into(), "a".into()))),
        print(&|r| drop(r.volume_context.insert(SERVICE_ACCOUNT.into(), "other".into()))),
        print(&|r| drop(r.secrets.insert(TOKENS.into(), r#"{"countersign":{"token":"new"}}"#.into()))),
        print(&|r| mount(r).volume_mount_group.clear()),
    ];
    for (index, print) in others.iter().enumerate() {
        assert_ne!(*print, same);
        assert!(!others[..index].contains(print));
    }
}

#[test]
fn debug_shows_no_token() {
    let publish = Publish::parse(sent(), &rules()).unwrap();
    let shown =
        format!("{publish:?} {:?}", publish.for_agent(&[], false, &Offer { capacity: 1, signals: false }));
    assert!(shown.contains("payments-0") && !shown.contains(SECRET_JWT), "{shown}");
}

#[test]
fn an_unpublish_needs_an_id_and_a_target_of_kubelet() {
    let message = |volume_id: &str, target_path: &str| {
        let request =
            NodeUnpublishVolumeRequest { volume_id: volume_id.into(), target_path: target_path.into() };
        let error = Unpublish::parse(&request, ROOT).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        error.to_string()
    };
    assert_eq!(message("", &target()), "volume_id is missing from the request");
    assert_eq!(message("csi-0", ""), "target_path is missing from the request");
    assert!(message("csi-0", "/").starts_with("target_path is not "));
    assert!(message("csi-0", "/var/lib/kubelet/pods").starts_with("target_path is not "));
    let request = NodeUnpublishVolumeRequest { volume_id: "never seen".into(), target_path: target() };
    assert_eq!(Unpublish::parse(&request, ROOT).unwrap().id, Publish::parse(sent(), &rules()).unwrap().id);
}
