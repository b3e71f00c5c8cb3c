use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn unavailable(error: &Error) -> (&str, Option<Duration>) {
    let Error::StoreUnavailable { problem, retry_after, .. } = error else { panic!("{error:?}") };
    (problem, *retry_after)
}

#[tokio::test]
async fn servers_out_of_service_say_so_and_the_next_is_asked() {
    let well = Server::start(vault(NOBODY)).await;
    let ill = Server::start(vault(NOBODY)).await;
    std::fs::write(well.ca(), [std::fs::read(well.ca()).unwrap(), std::fs::read(ill.ca()).unwrap()].concat())
        .unwrap();
    for (status, words, says) in [
        (503, "Vault is sealed", "sealed"),
        (501, "not initialized", "not initialized"),
        (472, "dr", "disaster recovery"),
        (473, "standby", "standby"),
        (500, "local node not active but active cluster node not found", "no active server"),
        (530, "removed", "removed from its cluster"),
    ] {
        ill.now_says(move |_| Some(errors(status, &[words])));
        let both = format!(
            "addresses: ['https://{}', 'https://{}']\ncaFile: {}\n",
            ill.address,
            well.address,
            well.ca().display()
        );
        Asker::at(&both).fetch("kv/data/app").await;
        let error = Asker::of(&ill, "").refusal("kv/data/app").await;
        assert!(unavailable(&error).0.contains(says), "{error}");
    }
}

#[tokio::test]
async fn limits_are_obeyed() {
    let server = Server::start(vault(|seen| {
        (seen.path == "kv/data/app").then(|| {
            errors(429, &["request path \"kv/data/app\": rate limit quota exceeded"])
                .with("retry-after", "17")
        })
    }))
    .await;
    let error = Asker::of(&server, "").refusal("kv/data/app").await;
    let (problem, retry_after) = unavailable(&error);
    assert_eq!(retry_after, Some(Duration::from_secs(17)));
    assert!(problem.contains("rate limit"), "{problem}");
}

#[tokio::test]
async fn a_node_that_is_behind_is_asked_again() {
    let mut left = 2;
    let server = Server::start(vault(move |seen| {
        (seen.path == "kv/data/app" && left > 0).then(|| {
            left -= 1;
            errors(412, &["required index state not present"])
        })
    }))
    .await;
    Asker::of(&server, "").fetch("kv/data/app").await;
    assert_eq!(server.lines().iter().filter(|line| *line == "GET kv/data/app").count(), 3);
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let elsewhere = Server::start(vault(NOBODY)).await;
    let to = format!("https://{}/v1/kv/data/app?token=x", elsewhere.address);
    let server = Server::start(vault(move |seen| {
        (seen.path == "kv/data/app").then(|| say(307, Value::Null).with("location", &to))
    }))
    .await;
    let error = Asker::of(&server, "").refusal("kv/data/app").await;
    let problem = unavailable(&error).0;
    assert!(
        problem.contains(&format!("redirects (307 Temporary Redirect) to https://{};", elsewhere.address)),
        "{problem}"
    );
    assert_eq!(elsewhere.lines(), [""; 0]);
}

/// The active one was a standby until now, and failed as one: the other one, which is a standby now, names it.
#[tokio::test]
async fn the_active_server_is_asked_at_once_when_another_names_it() {
    let (one, two) = (Server::start(vault(NOBODY)).await, Server::start(vault(NOBODY)).await);
    let roots = [std::fs::read(one.ca()).unwrap(), std::fs::read(two.ca()).unwrap()].concat();
    std::fs::write(one.ca(), roots).unwrap();
    let to = |server: &Server| {
        let to = format!("https://{}/v1/somewhere", server.address);
        vault(move |_| Some(say(307, Value::Null).with("location", &to)))
    };
    let addresses = format!("['https://{}', 'https://{}']", one.address, two.address);
    let config = format!("addresses: {addresses}\ncaFile: {}\n", one.ca().display());
    let mut asker = Asker::at(&config);
    one.now_says(to(&two));
    asker.fetch("kv/data/app").await;
    let sent_away = one.lines().len();
    assert!((1..=3).contains(&sent_away), "it is left alone after that: {sent_away}");
    one.now_says(vault(NOBODY));
    two.now_says(to(&one));
    asker.fetch("kv/data/app").await;
    assert!(one.lines().contains(&"GET kv/data/app".to_owned()), "though it was left alone");
    // Two that name each other are asked once each.
    one.now_says(to(&two));
    two.lines();
    for _ in 0..6 {
        asker.refusal("kv/data/app").await;
    }
    let requests = (one.lines().len(), two.lines().len());
    assert!(requests.0 <= 12 && requests.1 <= 12, "{requests:?}");
}

#[tokio::test]
async fn answers_that_are_no_vault_s() {
    for (status, body, says) in [
        (200, "<html>sign in</html>".to_owned(), "text/html that is not Vault's JSON"),
        (403, "<html>forbidden</html>".to_owned(), "403 Forbidden with text/html"),
        (200, format!("{{\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(5 << 20)), "longer than 4 MiB"),
    ] {
        let server = Server::start(vault(move |seen| {
            let said =
                Say { status, headers: Vec::new(), body: body.clone(), kind: "text/html; charset=utf-8" };
            (seen.path == "kv/data/app").then_some(said)
        }))
        .await;
        let error = Asker::of(&server, "").refusal("kv/data/app").await;
        assert!(unavailable(&error).0.contains(says), "{error}");
    }
}

#[tokio::test]
async fn tls_trouble_has_a_remedy() {
    let server = Server::start(vault(NOBODY)).await;
    let other = Server::start(vault(NOBODY)).await;
    let config = |address: &str, more: &str| {
        format!("addresses: ['{address}']\ncaFile: {}\n{more}", server.ca().display())
    };
    let at = |port: u16, host: &str| format!("https://{host}:{port}");
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_port = plain.local_addr().unwrap().port();
    let plain = async {
        loop {
            let (mut stream, _) = plain.accept().await.unwrap();
            let mut hello = [0; 64];
            let _read = stream.read(&mut hello).await.unwrap();
            stream
                .write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to HTTP\n")
                .await
                .unwrap();
        }
    };
    let work = async {
        for (config, says) in [
            (config(&at(other.address.port(), "127.0.0.1"), ""), "signed by none of the roots in caFile"),
            (config(&at(server.address.port(), "localhost"), ""), "set serverName"),
            (config(&at(plain_port, "127.0.0.1"), ""), "plain HTTP port"),
            (config("https://127.0.0.1:1", ""), "refused"),
        ] {
            let error = Asker::at(&config).refusal("kv/data/app").await;
            assert!(unavailable(&error).0.contains(says), "{error}");
        }
        Asker::at(&config(&at(server.address.port(), "localhost"), "serverName: vault.test\n"))
            .fetch("kv/data/app")
            .await;
    };
    tokio::select! { () = plain => {}, () = work => {} }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let server = Server::start(|_: &Seen| None).await;
    let mut asker = Asker::of(&server, "timeout: 1s\n");
    let error = asker.refusal("kv/data/app").await;
    assert!(unavailable(&error).0.contains("no answer within 1 s"), "{error}");
}

#[tokio::test]
async fn a_dead_server_is_left_alone_and_found_again() {
    let server = Server::start(|_: &Seen| Some(errors(503, &["Vault is sealed"]))).await;
    let mut asker = Asker::of(&server, "login: {inline: never}\n");
    for _ in 0..3 {
        asker.refusal("kv/data/app").await;
        pass(Duration::from_secs(20)).await;
    }
    server.lines();
    // What it is by now: one request, and then none until the rest is over.
    let error = asker.refusal("kv/data/app").await;
    let waits = unavailable(&error).1;
    let requests = server.lines().len();
    assert!(requests <= 1, "{requests}");
    let again = asker.refusal("kv/data/app").await;
    assert_eq!(server.lines(), [""; 0]);
    assert!(again.to_string().contains("sealed"), "{again} {waits:?}");
    server.now_says(vault(NOBODY));
    pass(Duration::from_secs(100)).await;
    asker.fetch("kv/data/app").await;
}

#[tokio::test]
async fn the_roots_are_read_again_when_they_change() {
    let (one, two) = (Server::start(vault(NOBODY)).await, Server::start(vault(NOBODY)).await);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::copy(one.ca(), &file).unwrap();
    let mut asker =
        Asker::at(&format!("addresses: ['https://{}']\ncaFile: {}\n", two.address, file.display()));
    asker.refusal("kv/data/app").await;
    let next = folder.path().join("next");
    std::fs::copy(two.ca(), &next).unwrap();
    std::fs::rename(next, file).unwrap();
    pass(Duration::from_secs(5)).await;
    asker.fetch("kv/data/app").await;
}
