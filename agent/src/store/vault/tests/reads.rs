use super::*;

#[tokio::test]
async fn a_secret_of_version_2() {
    let server = Server::start(vault(NOBODY)).await;
    let mut asker = Asker::of(&server, "login: {role: '{ns}_{sa}'}\n");
    let fetched = asker.fetch("kv/data/app#password").await;
    assert_eq!(text_of(&fetched, "password"), "s3cret");
    assert_eq!((fetched.version.as_str(), fetched.fresh), ("1@2026-01-01T00:00:00Z", Fresh::AsAsked));
    assert_eq!(fetched.request_id.as_deref(), Some("r-1"));
    let seen = server.taken();
    let lines: Vec<_> = seen.iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
    assert_eq!(
        lines,
        [
            "GET sys/health?standbyok=true&perfstandbyok=true",
            "POST auth/jwt/login",
            "GET sys/internal/ui/mounts/kv/data/app",
            "GET kv/data/app"
        ]
    );
    assert_eq!(seen[1].body, json!({ "role": "pay_api", "jwt": format!("jwt1 {API} vault") }));
    assert_eq!(
        (seen[0].token(), seen[1].token(), seen[2].token(), seen[3].token()),
        ("", "", "hvs.1", "hvs.1")
    );
    asker.fetch("kv/data/app").await;
    assert_eq!(
        server.lines(),
        ["POST sys/capabilities-self", "GET kv/data/app"],
        "token and mount are known, and whether a look at its metadata would do is found out"
    );
}

#[tokio::test]
async fn namespaces() {
    let server = Server::start(vault(NOBODY)).await;
    let mut asker = Asker::of(&server, "namespace: team\nlogin: {namespace: admin}\n");
    asker.fetch("kv/data/app?vault.namespace=a/b").await;
    let seen = server.taken();
    let of = |path: &str| {
        seen.iter().find(|seen| seen.path == path).unwrap().header("x-vault-namespace").to_owned()
    };
    assert_eq!((of("auth/jwt/login").as_str(), of("kv/data/app").as_str()), ("admin", "team/a/b"));
}

#[tokio::test]
async fn what_is_not_there_and_why() {
    let metadata = |deleted: &str, destroyed: bool| {
        say(
            404,
            json!({ "data": { "data": null, "metadata": { "version": 3, "deletion_time": deleted, "destroyed": destroyed } } }),
        )
    };
    let server = Server::start(vault(move |seen| match seen.path.as_str() {
        "kv/data/deleted" => Some(metadata("2026-01-02T00:00:00Z", false)),
        "kv/data/destroyed" => Some(metadata("", true)),
        "nowhere/x" => Some(errors(404, &["no handler for route \"nowhere/x\". route entry not found."])),
        "database/static-creds/no" => Some(errors(400, &["unknown role: no"])),
        _ => None,
    }))
    .await;
    let mut asker = Asker::of(&server, "");
    for (reference, says) in [
        ("kv/data/never", "vault:kv/data/never: no such secret"),
        ("kv/data/never?version=7", "there is no version 7 of it"),
        ("kv/data/deleted", "version 3 was deleted at 2026-01-02T00:00:00Z"),
        ("kv/data/destroyed", "version 3 is destroyed for good"),
        ("kv/app", "kv/ is a key-value mount of version 2: write vault:kv/data/app"),
        ("kv1/data/app", "kv1/ is a key-value mount of version 1: write vault:kv1/app"),
        ("nowhere/x", "nothing is mounted there"),
        ("database/static-creds/no", "its engine has no such role (unknown role: no)"),
    ] {
        let error = asker.refusal(reference).await;
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
        assert!(error.to_string().contains(says), "{reference}: {error}");
    }
}

#[tokio::test]
async fn refusals_say_what_would_help() {
    let server = Server::start(vault(|seen| match seen.path.as_str() {
        "kv/data/closed" | "x/y" => Some(errors(403, &["1 error occurred:\n\t* permission denied\n\n"])),
        "x/post-only" => Some(errors(405, &["unsupported operation"])),
        "pki/sign/web" => Some(errors(400, &["role requires keys of type rsa"])),
        _ => None,
    }))
    .await;
    let mut asker = Asker::of(&server, "login: {role: pay}\n");
    asker.alone = true;
    for (reference, says) in [
        (
            "kv/data/closed",
            "vault:kv/data/closed: the server does not let spiffe://t/ns/pay/sa/api (role pay, policies default pay) have it; a policy with path \"kv/data/closed\" { capabilities = [\"read\"] } would",
        ),
        ("x/y?a=b", "a policy with path \"x/y\" { capabilities = [\"create\", \"update\"] } would"),
        ("x/post-only", "try vault.method=post"),
        ("pki/sign/web?common_name=a", "the role must allow key_type ec or any"),
        ("kv1/app?version=3", "only key-value mounts of version 2 keep versions"),
    ] {
        let error = asker.refusal(reference).await.to_string();
        assert!(error.contains(says), "{reference}: {error}");
    }
}

#[tokio::test]
async fn an_allow_rule_refuses_before_anybody_is_asked() {
    let server = Server::start(vault(NOBODY)).await;
    let mut asker =
        Asker::of(&server, "allow:\n- {id: 'spiffe://t/ns/*/sa/*', paths: ['kv/data/{ns}/**']}\n");
    let error = asker.refusal("kv/data/app").await;
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert_eq!(server.lines(), [""; 0]);
}

#[tokio::test]
async fn a_mount_that_is_not_told_is_known_by_its_paths() {
    let server = Server::start(vault(|seen| match seen.path.as_str() {
        "sys/internal/ui/mounts/other/data/app" => Some(errors(404, &[])),
        "other/data/app" => Some(secret(4, &json!({ "a": "b" }))),
        _ => None,
    }))
    .await;
    let mut asker = Asker::of(&server, "");
    let fetched = asker.fetch("other/data/app").await;
    assert_eq!(
        (text_of(&fetched, "a"), fetched.version.as_str()),
        ("b".to_owned(), "4@2026-01-01T00:00:00Z")
    );
    server.lines();
    asker.fetch("other/data/app").await;
    assert_eq!(
        server.lines(),
        ["POST sys/capabilities-self", "GET other/data/app"],
        "what is mounted is not asked for each time"
    );
}

#[tokio::test]
async fn when_to_look_again() {
    let soon = humantime::format_rfc3339(Clock::system().wall() + Duration::from_secs(100)).to_string();
    let server = Server::start(vault(move |seen| {
        let data = match seen.path.as_str() {
            "kv/data/ends" => json!({ "data": { "a": "b" }, "metadata": { "version": 1, "deletion_time": soon } }),
            "database/static-creds/app" => {
                json!({ "username": "u", "password": "p", "last_vault_rotation": "2026-01-01T00:00:00Z", "ttl": 100, "rotation_period": 3600 })
            }
            "auth/approle/role/a/secret-id" => json!({ "secret_id": "s", "secret_id_ttl": 600 }),
            "transit/decrypt/k" => json!({ "plaintext": "aGk=" }),
            "gcp/roleset/a/token" => json!({ "token": "t", "token_ttl": 600, "expires_at_seconds": 1 }),
            _ => return None,
        };
        Some(say(200, json!({ "data": data, "lease_duration": 0, "lease_id": "" })))
    }))
    .await;
    let mut asker = Asker::of(&server, "");
    asker.alone = true;
    let within = |fresh: Fresh, from: u64, to: u64| {
        let (Fresh::AtMost(span) | Fresh::Exactly(span)) = fresh else { panic!("{fresh:?}") };
        assert!((Duration::from_secs(from)..=Duration::from_secs(to)).contains(&span), "{span:?}");
        fresh == Fresh::Exactly(span)
    };
    assert!(!within(asker.fetch("kv/data/ends").await.fresh, 99, 101));
    assert!(!within(asker.fetch("database/static-creds/app").await.fresh, 101, 103));
    assert!(within(asker.fetch("auth/approle/role/a/secret-id?vault.method=post").await.fresh, 360, 401));
    assert!(within(asker.fetch("transit/decrypt/k?ciphertext=x").await.fresh, 7 * 3600, 8 * 3600 + 60));
    assert!(!within(asker.fetch("gcp/roleset/a/token").await.fresh, 360, 401));
    assert_eq!(asker.fetch("kv1/app").await.fresh, Fresh::AtMost(Duration::from_secs(2_764_800)));
}

#[tokio::test]
async fn a_certificate_for_a_key_made_here() {
    let expires = Clock::system().unix() + 1000;
    let server = Server::start(vault(move |seen| {
        (seen.path == "pki/sign/web").then(|| {
            say(200, json!({ "data": { "certificate": "PEM", "serial_number": "1", "expiration": expires } }))
        })
    }))
    .await;
    let mut asker = Asker::of(&server, "");
    assert!(
        matches!(asker.answer("pki/sign/web?common_name=a.b").await, Ok(Answer::Apart)),
        "no key is shared"
    );
    asker.alone = true;
    let reference = "pki/sign/web?common_name=pay.internal&alt_names=a.internal, b@c&ip_sans=10.0.0.1&uri_sans=spiffe://t/x&ttl=1h";
    let fetched = asker.fetch(reference).await;
    let Fresh::Exactly(span) = fetched.fresh else { panic!("{:?}", fetched.fresh) };
    assert!((590..=710).contains(&span.as_secs()), "{span:?}");
    let seen = server.taken().pop().unwrap();
    assert_eq!(
        (seen.body["common_name"].as_str(), seen.body["ttl"].as_str()),
        (Some("pay.internal"), Some("1h"))
    );
    let csr = rcgen::CertificateSigningRequestParams::from_pem(seen.body["csr"].as_str().unwrap()).unwrap();
    assert_eq!(csr.params.subject_alt_names.len(), 4);
    let names = format!("{:?}", csr.params.distinguished_name);
    assert!(names.contains("pay.internal"), "{names}");
    let key = rcgen::KeyPair::from_pem(&text_of(&fetched, "private_key")).unwrap();
    assert_eq!(rcgen::PublicKeyData::der_bytes(&csr.public_key), rcgen::PublicKeyData::der_bytes(&key));
    assert_eq!(
        (text_of(&fetched, "certificate"), text_of(&fetched, "private_key_type")),
        ("PEM".into(), "ec".into())
    );
    let other = asker.fetch(reference).await;
    assert_ne!(text_of(&fetched, "private_key"), text_of(&other, "private_key"));
    let error = asker.refusal("pki/sign/web?common_name=a&ip_sans=ten").await.to_string();
    assert!(error.contains("ip_sans: \"ten\" cannot stand in a certificate"), "{error}");
}

#[tokio::test]
async fn wrapping_hands_out_a_token_for_each_volume() {
    let server = Server::start(vault(|seen| {
        (seen.path == "kv/data/app" && seen.header("x-vault-wrap-ttl") == "300").then(|| {
            say(200, json!({ "data": null, "wrap_info": { "token": "hvs.wrapped", "ttl": 300, "creation_path": "kv/data/app" } }))
        })
    }))
    .await;
    let mut asker = Asker::of(&server, "");
    let reference = "kv/data/app#token?vault.wrap=5m";
    assert!(matches!(asker.answer(reference).await, Ok(Answer::Apart)));
    asker.alone = true;
    let fetched = asker.fetch(reference).await;
    assert_eq!(text_of(&fetched, "token"), "hvs.wrapped");
    assert!(
        matches!(fetched.fresh, Fresh::Exactly(span) if (180..=201).contains(&span.as_secs())),
        "{:?}",
        fetched.fresh
    );
    let error = asker.refusal("database/creds/app?vault.wrap=5m").await.to_string();
    assert!(error.contains("has a lease, which nobody could renew"), "{error}");
}

#[tokio::test]
async fn unwrapping_looks_first_and_happens_once() {
    let server = Server::start(vault(|seen| {
        Some(match seen.path.as_str() {
            "kv/data/boot" => secret(1, &json!({ "wrapped": "hvs.box" })),
            "sys/wrapping/lookup" => {
                assert_eq!((seen.token(), &seen.body), ("", &json!({ "token": "hvs.box" })));
                say(200, json!({ "data": { "creation_path": "auth/approle/role/app/secret-id", "creation_ttl": 300 } }))
            }
            "sys/wrapping/unwrap" => {
                assert_eq!((seen.token(), &seen.body), ("hvs.box", &Value::Null), "never both");
                say(200, json!({ "data": { "secret_id": "s" } }))
            }
            _ => return None,
        })
    }))
    .await;
    let mut asker = Asker::of(&server, "");
    let good = "kv/data/boot#secret_id?vault.unwrap=wrapped&vault.created-by=auth/approle/role/app/secret-id";
    assert_eq!(text_of(&asker.fetch(good).await, "secret_id"), "s");
    server.lines();
    assert_eq!(text_of(&asker.fetch(good).await, "secret_id"), "s");
    assert_eq!(server.lines(), ["GET kv/data/boot"], "it is not spent again while it is the same");
    asker.held = None;
    let error =
        asker.refusal("kv/data/boot?vault.unwrap=wrapped&vault.created-by=kv/data/boot").await.to_string();
    assert!(
        error.contains(
            "was made by \"auth/approle/role/app/secret-id\", not by \"kv/data/boot\"; it is not unwrapped"
        ),
        "{error}"
    );
    assert!(!server.lines().iter().any(|line| line.contains("unwrap")));
    let error = asker.refusal("kv/data/boot?vault.unwrap=nothing&vault.created-by=x").await.to_string();
    assert!(error.contains("no text field \"nothing\""), "{error}");
    server.now_says(vault(|seen| match seen.path.as_str() {
        "kv/data/boot" => Some(secret(2, &json!({ "wrapped": "hvs.box" }))),
        "sys/wrapping/lookup" => {
            Some(errors(400, &["wrapping token is not valid or does not exist: hvs.box"]))
        }
        _ => None,
    }));
    let error = asker.refusal(good).await.to_string();
    assert!(error.contains("has ended or was used already") && !error.contains("hvs.box"), "{error}");
}
