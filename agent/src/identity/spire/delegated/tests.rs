use serde_json::json;

use super::*;

/// The pod of the test of SPIRE's own attestor, as the API server shows it, and what that attestor finds of it.
#[test]
fn the_selectors_are_those_that_spires_attestor_finds() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": "blog-24ck7", "namespace": "default", "uid": "2c48913c-b29f-11e7-9350-020968147796",
            "labels": {"k8s-app": "blog", "version": "v0"},
            "ownerReferences": [
                {"kind": "ReplicationController", "name": "blog", "uid": "2c401175-b29f-11e7-9350-020968147796"},
            ],
        },
        "spec": {"serviceAccountName": "default", "nodeName": "k8s-node-1"},
        "status": {
            "containerStatuses": [{"image": "localhost/blog:latest", "imageID": "docker://sha256:0cfd"}],
            "initContainerStatuses": [],
        },
    }))
    .unwrap();
    let found: Vec<String> =
        selectors(&pod).into_iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
    assert_eq!(
        found,
        [
            "k8s:node-name:k8s-node-1",
            "k8s:ns:default",
            "k8s:pod-image-count:1",
            "k8s:pod-image:docker://sha256:0cfd",
            "k8s:pod-image:localhost/blog:latest",
            "k8s:pod-init-image-count:0",
            "k8s:pod-label:k8s-app:blog",
            "k8s:pod-label:version:v0",
            "k8s:pod-name:blog-24ck7",
            "k8s:pod-owner-uid:ReplicationController:2c401175-b29f-11e7-9350-020968147796",
            "k8s:pod-owner:ReplicationController:blog",
            "k8s:pod-uid:2c48913c-b29f-11e7-9350-020968147796",
            "k8s:sa:default",
        ]
    );
}

#[test]
fn a_trust_domain_by_either_name() {
    assert_eq!(domain_id("example.org"), "spiffe://example.org");
    assert_eq!(domain_id("spiffe://example.org"), "spiffe://example.org");
}
