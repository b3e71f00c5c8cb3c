use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

#[tokio::test]
async fn a_token_is_shared_renewed_and_replaced() {
    let server = Server::start(vault(|seen| match seen.path.as_str() {
        "auth/jwt/login" if seen.body["role"].is_null() => None,
        "auth/token/renew-self" => {
            assert_eq!((seen.token(), &seen.body), ("hvs.1", &json!({ "increment": 3600 })));
            let auth = json!({ "client_token": "hvs.1", "lease_duration": 3600, "renewable": true });
            Some(say(200, json!({ "auth": auth })))
        }
        _ => None,
    }))
    .await;
    let mut asker = Asker::of(&server, "");
    asker.fetch("kv/data/app").await;
    pass(Duration::from_secs(2000)).await;
    asker.fetch("kv/data/app").await;
    server.lines();
    pass(Duration::from_secs(500)).await;
    asker.fetch("kv/data/app").await;
    assert!(server.lines().contains(&"POST auth/token/renew-self".to_owned()));
    // Near its greatest TTL it is granted less, and is not renewed again.
    server.now_says(vault(|seen| match seen.path.as_str() {
        "auth/jwt/login" => Some(login(2, 3600)),
        "auth/token/renew-self" => Some(say(
            200,
            json!({ "auth": { "client_token": "hvs.1", "lease_duration": 900, "renewable": true } }),
        )),
        _ => None,
    }));
    pass(Duration::from_secs(2500)).await;
    asker.fetch("kv/data/app").await;
    let lines = server.lines();
    assert!(lines.contains(&"POST auth/token/renew-self".to_owned()), "{lines:?}");
    assert!(!lines.contains(&"POST auth/jwt/login".to_owned()), "{lines:?}");
    pass(Duration::from_secs(610)).await;
    asker.fetch("kv/data/app").await;
    let seen = server.taken();
    assert_eq!((seen[0].path.as_str(), seen[1].token()), ("auth/jwt/login", "hvs.2"));
}

#[tokio::test]
async fn a_token_that_is_not_known_any_more_is_replaced_once() {
    let server = Server::start(vault(NOBODY)).await;
    let mut asker = Asker::of(&server, "");
    asker.fetch("kv/data/app").await;
    pass(Duration::from_secs(100)).await;
    server.lines();
    server.now_says(vault(|seen| match (seen.path.as_str(), seen.token()) {
        ("auth/jwt/login", _) => Some(login(2, 3600)),
        (_, "hvs.1") => Some(errors(403, &["permission denied"])),
        _ => None,
    }));
    asker.fetch("kv/data/app").await;
    let lines = server.lines();
    let expected = [
        "POST sys/capabilities-self",
        "GET kv/data/app",
        "GET auth/token/lookup-self",
        "POST auth/jwt/login",
        "GET kv/data/app",
    ];
    assert_eq!(lines, expected);
    // One that is denied by policy is known, and nobody logs in anew for it.
    pass(Duration::from_secs(100)).await;
    server.now_says(vault(|seen| (seen.path == "kv/data/app").then(|| errors(403, &["permission denied"]))));
    assert!(matches!(asker.refusal("kv/data/app").await, Error::Denied { .. }));
    assert_eq!(server.lines(), ["GET kv/data/app", "GET auth/token/lookup-self"]);
    // And one that is refused right after its login is refused for good.
    server.now_says(vault(|seen| match seen.path.as_str() {
        "auth/jwt/login" => Some(login(3, 3600)),
        path if path.starts_with("auth/jwt") => None,
        _ => Some(errors(403, &["permission denied"])),
    }));
    pass(Duration::from_secs(100)).await;
    assert!(matches!(asker.refusal("kv/data/app").await, Error::Denied { .. }));
    let logins = server.lines().iter().filter(|line| line.contains("login")).count();
    assert_eq!(logins, 1);
}

#[tokio::test]
async fn logins_that_fail_say_why_and_are_not_repeated_at_once() {
    let server = Server::start(vault(NOBODY)).await;
    for (status, words, remedy) in [
        (400, "role \"pay\" could not be found", "make the role at auth/jwt/role/…"),
        (
            400,
            "error validating token: invalid audience (aud) claim: audience claim does not match any expected audience",
            "bound_audiences of the role must name it",
        ),
        (400, "audience claim found in JWT but no audiences bound to the role", "\"vault\": bound_audiences"),
        (400, "error validating token: token is expired", "the clocks of the issuer and of the server"),
        (
            400,
            "error validating claims: claim \"sub\" does not match any associated bound claim values",
            "must allow spiffe://t/ns/pay/sa/api",
        ),
        (400, "error verifying token: no known key successfully validated the token signature", "jwks_url"),
        (403, "permission denied", "is the method enabled at jwt/"),
        (404, "no handler for route \"auth/jwt/login\". route entry not found.", "nothing is mounted there"),
        (500, "missing name in alias", "Give the SPIRE entry a dnsName"),
    ] {
        server.now_says(vault(move |seen| (seen.path == "auth/jwt/login").then(|| errors(status, &[words]))));
        let mut asker = Asker::of(&server, "login: {role: pay}\n");
        let error = asker.refusal("kv/data/app").await;
        assert!(
            matches!(&error, Error::LoginRefused { reference, .. } if reference == "vault:kv/data/app"),
            "{error:?}"
        );
        assert!(!error.is_withdrawal(), "keys that are not there yet would wipe files");
        let text = error.to_string();
        assert!(text.contains(remedy) && text.contains("role pay") && text.contains(words), "{text}");
        server.lines();
        let error = asker.refusal("kv/data/other").await;
        assert!(
            matches!(&error, Error::LoginRefused { reference, .. } if reference == "vault:kv/data/other"),
            "{error:?}"
        );
        assert_eq!(server.lines(), [""; 0], "one failure for all that ask at once");
        pass(Duration::from_secs(2)).await;
        asker.refusal("kv/data/app").await;
        assert_eq!(server.lines(), ["POST auth/jwt/login"]);
        assert_eq!(asker.mint.minted.load(Ordering::SeqCst), 2, "and with another JWT-SVID");
    }
}

#[tokio::test]
async fn a_login_never_shows_its_token_in_an_error() {
    let server = Server::start(vault(|seen| {
        (seen.path == "auth/jwt/login")
            .then(|| errors(400, &[&format!("cannot parse {}", seen.body["jwt"].as_str().unwrap())]))
    }))
    .await;
    let error = Asker::of(&server, "").refusal("kv/data/app").await.to_string();
    assert!(error.contains("cannot parse (token)") && !error.contains("jwt1"), "{error}");
}

#[tokio::test]
async fn the_spiffe_method_has_its_token_in_a_header() {
    let server = Server::start(vault(NOBODY)).await;
    let mut asker = Asker::of(&server, "login: {method: spiffe, role: pay, audience: v}\n");
    asker.fetch("kv/data/app").await;
    let seen = server.taken();
    let login = &seen[0];
    assert_eq!(
        (login.path.as_str(), &login.body),
        ("auth/spiffe/login", &json!({ "role": "pay", "type": "jwt" }))
    );
    assert_eq!(login.header("authorization"), format!("Bearer jwt1 {API} v"));
    // What renews such a token is not written anywhere, so it is replaced.
    pass(Duration::from_secs(2500)).await;
    asker.fetch("kv/data/app").await;
    assert_eq!(server.lines()[0], "POST auth/spiffe/login");
}

#[tokio::test]
async fn openbao_is_recognized_and_reads_without_a_token() {
    let failed = |seen: &Seen| {
        if seen.path.starts_with("sys/health") {
            return Some(say(200, json!({ "initialized": true, "version": "2.4.1", "cluster_id": "c" })));
        }
        (seen.path == "kv/data/refused").then(|| {
            errors(400, &["role \"pay\" could not be found"]).with("x-vault-inline-auth-failed", "true")
        })
    };
    let server = Server::start(vault(failed)).await;
    let mut asker = Asker::of(&server, "login: {role: pay}\n");
    asker.fetch("kv/data/app").await;
    asker.fetch("kv/data/app").await;
    let seen = server.taken();
    assert!(!seen.iter().any(|seen| seen.path.contains("login") || !seen.token().is_empty()), "{seen:?}");
    assert_eq!(asker.mint.minted.load(Ordering::SeqCst), 1);
    let read = seen.last().unwrap();
    let parameter = |name: &str| {
        let bytes =
            URL_SAFE_NO_PAD.decode(read.header(&format!("x-vault-inline-auth-parameter-{name}"))).unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap()
    };
    assert_eq!(read.header("x-vault-inline-auth-path"), "auth/jwt/login");
    assert_eq!(parameter("role"), json!({ "key": "role", "value": "pay" }));
    assert_eq!(parameter("jwt"), json!({ "key": "jwt", "value": format!("jwt1 {API} vault") }));
    let error = asker.refusal("kv/data/refused").await.to_string();
    assert!(error.contains("could not log in at auth/jwt with role pay"), "{error}");
    let mut never = Asker::of(&server, "login: {role: pay, inline: never}\n");
    never.fetch("kv/data/app").await;
    assert!(server.lines().contains(&"POST auth/jwt/login".to_owned()));
}

#[tokio::test]
async fn a_session_that_nobody_uses_ends_and_its_token_with_it() {
    let server = Server::start(vault(NOBODY)).await;
    let mut asker = Asker::of(&server, "");
    asker.fetch("kv/data/app").await;
    let shutdown = CancellationToken::new();
    let (store, work) = (asker.store.clone(), async {
        asker.held = None;
        asker.store.0.sessions.sweep();
        pass(Duration::from_secs(70)).await;
        asker.store.0.sessions.sweep();
        while !server
            .taken()
            .iter()
            .any(|seen| seen.path == "auth/token/revoke-self" && seen.token() == "hvs.1")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shutdown.cancel();
    });
    tokio::join!(store.run(shutdown.clone()), work);
}
