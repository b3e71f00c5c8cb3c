use super::*;

const CONFIG: &str = r#"
stores:
  vault:
    type: vault
    addresses: ["https://vault.example.org:8200"]
    caFile: /etc/ca.pem
    namespace: team
    login: { role: "{ns}_{sa}" }
  sops:
    type: sops
    directory: /d
    ageKeyFile: /k
    allow: [{ id: "spiffe://example.org/ns/payments/sa/api", paths: ["shared/*"] }]
"#;

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: other }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: api, namespace: payments }
spec:
  template:
    metadata:
      annotations:
        countersign.dev/inject: "true"
        secret.countersign.dev/a: vault:kv/data/payments#password
        prometheus.io/scrape: "true"
    spec:
      serviceAccountName: api
      volumes:
      - name: more
        csi:
          driver: csi.countersign.dev
          readOnly: true
          volumeAttributes:
            secret.countersign.dev/cert.json: vault:pki/sign/web?common_name=x&vault.namespace=b
            template.countersign.dev/env: |
              {{ secret("vault:database/creds/app").username }}
              {% if true %}{{ secret("sops:shared/x").y }}{% endif %}
            jwt.countersign.dev/t: https://api
"#;

fn explained(manifest: &str) -> (String, usize) {
    let stores = Stores::new(serde_saphyr::from_str(CONFIG).unwrap()).unwrap();
    let (mut out, mut wrong) = (String::new(), 0);
    for pod in manifest::pods(manifest, "default").unwrap() {
        wrong += explain(&mut out, &pod, &"example.org".parse().unwrap(), &stores).unwrap();
    }
    (out, wrong)
}

#[test]
fn a_deployment_with_annotations_and_a_volume() {
    let (out, wrong) = explained(MANIFEST);
    assert_eq!(
        out,
        r#"Deployment payments/api: spiffe://example.org/ns/payments/sa/api

  volume by annotations
    a                        vault:kv/data/payments#password

  volume more
    cert.json                vault:pki/sign/web
    env                      a template of sops:shared/x, vault:database/creds/app
    t                        a JWT-SVID for https://api

  store sops (sops)
    shared/x: allowed

  store vault (vault)
    logs in at auth/jwt as role payments_api, audience vault in namespace team
    its policies have to say
      path "database/creds/app" { capabilities = ["read"] }   # in namespace team
      path "kv/data/payments" { capabilities = ["read"] }   # in namespace team
      path "pki/sign/web" { capabilities = ["create", "update"] }   # in namespace team/b

"#
    );
    assert_eq!(wrong, 0);
}

#[test]
fn what_a_store_answered_last_is_shown_beside() {
    let mut stores = Stores::new(serde_saphyr::from_str(CONFIG).unwrap()).unwrap();
    let answer =
        |question: &str, volume: Option<&str>, version: Option<&str>, trouble: Option<&str>| Answered {
            spiffe_id: "spiffe://example.org/ns/payments/sa/api".to_owned(),
            question: question.to_owned(),
            volume: volume.map(str::to_owned),
            version: version.map(str::to_owned),
            seconds_ago: version.map(|_| 7),
            trouble: trouble.map(str::to_owned),
            again_in_seconds: trouble.map(|_| 3),
            told: None,
        };
    let other = Answered {
        spiffe_id: "spiffe://example.org/ns/x/sa/y".to_owned(),
        ..answer("sops:shared/x", None, Some("other"), None)
    };
    stores.answered = Some(vec![
        answer("vault:database/creds/app", Some("csi-1"), Some("l1"), Some("denied")),
        answer("vault:kv/data/payments", None, Some("3@t"), None),
        answer("vault:pki/sign/web?common_name=x&vault.namespace=b", Some("csi-1"), None, Some("denied")),
        other,
    ]);
    let mut out = String::new();
    for pod in manifest::pods(MANIFEST, "default").unwrap() {
        explain(&mut out, &pod, &"example.org".parse().unwrap(), &stores).unwrap();
    }
    for line in [
        "    it answered last\n      sops:shared/x: nothing; no pod of this identity on that node has it\n",
        "      vault:database/creds/app: for csi-1: NO: denied; asked again in 3 s; version l1 of 7 s ago is in use\n",
        "      vault:kv/data/payments: version 3@t, 7 s ago\n",
        "      vault:pki/sign/web?common_name=x&vault.namespace=b: for csi-1: NO: denied; asked again in 3 s\n",
    ] {
        assert!(out.contains(line), "{line} in {out}");
    }
}

#[test]
fn what_cannot_work_is_counted() {
    let (out, wrong) = explained(&MANIFEST.replace("sops:shared", "sops:others"));
    assert!(out.contains("others/x: NOT ALLOWED"), "{out}");
    assert_eq!(wrong, 1);
    let (out, wrong) = explained(&MANIFEST.replace("secret.countersign.dev/a", "secrets.countersign.dev/a"));
    assert!(out.contains("WRONG: secrets.countersign.dev/a"), "{out}");
    assert_eq!(wrong, 1);
    let (out, wrong) = explained(&MANIFEST.replace("readOnly: true", "readOnly: false"));
    assert!(out.contains("readOnly must be true"), "{out}");
    assert_eq!(wrong, 1);
    let (out, wrong) = explained(&MANIFEST.replace("vault.namespace=b", "vault.namspace=b"));
    assert!(out.contains("did you mean vault.namespace?"), "{out}");
    assert_eq!(wrong, 1);
}

#[test]
fn pods_in_every_wrapping() {
    let pod = "{ metadata: { annotations: { countersign.dev/inject: \"true\" } }, spec: {} }";
    let job = format!("kind: CronJob\nspec: {{ jobTemplate: {{ spec: {{ template: {pod} }} }} }}\n");
    let list = format!("kind: List\nitems:\n- {pod}\n- {pod}\n");
    let found = |text: &str| {
        let pods = manifest::pods(text, "ns").unwrap();
        pods.iter()
            .map(|pod| format!("{} {}/{}", pod.kind, pod.namespace, pod.service_account))
            .collect::<Vec<_>>()
    };
    assert_eq!(found(&job), ["CronJob ns/default"]);
    assert_eq!(found(&list), ["Pod ns/default"; 2]);
    assert_eq!(found("kind: Pod\nspec: {}\n"), Vec::<String>::new());
    assert!(manifest::pods("a: [", "ns").is_err());
}
