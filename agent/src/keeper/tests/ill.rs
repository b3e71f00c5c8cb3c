//! One secret that will not do: what has nothing to do with it goes on, and what has is never torn.

use super::*;
use crate::kubernetes::events::Reason;

const SVID: (&str, &str) = ("svid.countersign.dev/x509", "crt,key,ca");
const JWT: (&str, &str) = ("jwt.countersign.dev/t", "aud");

fn keys<'k>(more: &[(&'k str, &'k str)]) -> Vec<(&'k str, &'k str)> {
    let mut keys = vec![SVID, JWT];
    keys.extend_from_slice(more);
    keys
}

/// How many volumes the metrics call stale.
fn stale(scene: &Scene) -> String {
    let text = scene.metrics.text().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("countersign_volumes_stale "));
    line.unwrap_or_default().to_owned()
}

/// Certificate and key, which are of one SVID.
fn svid(dir: &TempDir) -> String {
    let [chain, key] = ["crt", "key"].map(|name| read(dir, name));
    let serial = |pem: &str| {
        use base64::Engine as _;
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
        String::from_utf8(der).unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(serial(&chain), serial(&key));
    serial(&key)
}

#[tokio::test(start_paused = true)]
async fn a_field_that_is_gone_holds_up_neither_svids_nor_other_secrets() {
    let (events, mut told) = Recorder::pair();
    let (scene, dir) = (Scene::telling(events), directory());
    scene.sources().put("a", "user=u1 password=p1");
    scene.sources().put("b", "bee");
    let keys = keys(&[
        ("secret.countersign.dev/user", "s:a#user"),
        ("secret.countersign.dev/password", "s:a#password"),
        ("secret.countersign.dev/b", "s:b"),
    ]);
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    assert_eq!((svid(&dir).as_str(), read(&dir, "t").as_str()), ("1", "jwt 1 for aud"));
    scene.sources().put("a", "password=p2");
    scene.sources().put("b", "bumble");
    tokio::time::sleep(MINUTE * 70).await;
    assert_eq!(svid(&dir), "3", "renewed at half of each hour");
    assert!(scene.sources().minted() > 20, "and JWT-SVIDs every few minutes");
    assert_ne!(read(&dir, "t"), "jwt 1 for aud");
    let shown = ["user", "password", "b"].map(|name| read(&dir, name));
    assert_eq!(shown, ["u1", "p1", "bumble"], "user and password are of one answer");
    assert_eq!(stale(&scene), "1");
    let note = told.try_recv().unwrap();
    assert_eq!(note.reason, Reason::RefreshFailing);
    let problem = "secret.countersign.dev/user: s:a#user: no such field; it has password";
    assert_eq!(note.message, format!("the files stay as they were: {problem}"));
    assert!(told.try_recv().is_err(), "told once");
    scene.sources().put("a", "user=u3 password=p3");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(["user", "password"].map(|name| read(&dir, name)), ["u3", "p3"]);
    assert_eq!(told.try_recv().unwrap().reason, Reason::RefreshRecovered);
    assert_eq!(stale(&scene), "0");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_template_goes_on_showing_the_secret_that_will_do() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().put("a", "x=1");
    scene.sources().put("b", "y=1");
    let template = r#"{{ secret("s:a").x }} {{ secret("s:b").y }}"#;
    let keys = keys(&[("template.countersign.dev/both", template), ("secret.countersign.dev/y", "s:b#y")]);
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    for (a, b, shows) in [
        // The order in which they change makes no difference.
        ("x=1", "z=2", "1 1"),
        ("x=2", "z=2", "2 1"),
        ("x=3", "z=3", "3 1"),
        ("x=4", "y=4", "4 4"),
        ("w=5", "z=5", "4 4"),
        ("x=6", "z=6", "6 4"),
    ] {
        scene.sources().put("a", a);
        scene.sources().put("b", b);
        tokio::time::sleep(MINUTE * 2).await;
        assert_eq!(read(&dir, "both"), shows, "{a} {b}");
        assert_eq!(read(&dir, "y"), shows[2..], "{a} {b}");
    }
    scene.end().await;
}

/// It knows what the files hold, and not what that was made from.
#[tokio::test(start_paused = true)]
async fn an_agent_that_has_just_started_goes_on_renewing_svids_beside_what_it_cannot_read() {
    let (before, dir) = (Scene::new(), directory());
    before.sources().put("a", "user=u1 password=p1");
    before.sources().put("b", "b1");
    before.sources().put("c", "c1");
    let keys = keys(&[
        ("secret.countersign.dev/user", "s:a#user"),
        ("secret.countersign.dev/password", "s:a#password"),
        ("template.countersign.dev/all", r#"{{ secret("s:a").user }} {{ secret("s:b") }}"#),
        ("secret.countersign.dev/b", "s:b"),
        ("secret.countersign.dev/c", "s:c"),
    ]);
    before.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    before.end().await;
    let shown = || ["user", "password", "all", "b", "c"].map(|name| read(&dir, name));

    let after = Scene::new();
    after.sources().fail(down());
    // Told apart from the first one's.
    after.sources().number_from(10);
    after.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    assert_eq!((svid(&dir).as_str(), shown()), ("11", ["u1", "p1", "u1 b1", "b1", "c1"].map(String::from)));
    tokio::time::sleep(MINUTE * 40).await;
    assert_eq!(svid(&dir), "12");
    // The store is back, and one field is not: what is made from it stays, and what stands beside that with it.
    after.sources().put("a", "password=p2");
    after.sources().put("b", "b2");
    after.sources().put("c", "c2");
    after.sources().heal();
    tokio::time::sleep(MINUTE * 40).await;
    assert_eq!((svid(&dir).as_str(), shown()), ("13", ["u1", "p1", "u1 b1", "b1", "c2"].map(String::from)));
    after.sources().put("b", "b3");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(shown(), ["u1", "p1", "u1 b1", "b1", "c2"]);
    after.sources().put("a", "user=u4 password=p4");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(shown(), ["u4", "p4", "u4 b3", "b3", "c2"]);
    after.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_has_grown_too_large_holds_up_no_svid() {
    let (scene, dir) = (Scene::new(), directory());
    scene.publish("v", "a", &keys(&[SECRET[0]]), Some(dir.path())).await.unwrap();
    scene.sources().put("a", &"x".repeat(2 << 20));
    tokio::time::sleep(MINUTE * 40).await;
    assert_eq!((svid(&dir).as_str(), read(&dir, "a").as_str()), ("2", "one"));
    scene.sources().put("a", "small");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&dir, "a"), "small");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_jwt_svid_that_is_not_to_be_had_holds_up_nothing_else() {
    let (before, dir) = (Scene::new(), directory());
    before.publish("v", "a", &keys(&[SECRET[0]]), Some(dir.path())).await.unwrap();
    before.end().await;
    let after = Scene::new();
    after.sources().fail_jwts(Some(Error::IdentityRefused { problem: "not for aud".into() }));
    after.sources().number_from(10);
    after.sources().put("a", "two");
    after.publish("v", "a", &keys(&[SECRET[0]]), Some(dir.path())).await.unwrap();
    tokio::time::sleep(MINUTE * 40).await;
    let shown = (svid(&dir), read(&dir, "t"), read(&dir, "a"));
    assert_eq!(shown, ("12".into(), "jwt 1 for aud".into(), "two".into()));
    after.sources().fail_jwts(None);
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(read(&dir, "t"), "jwt 11 for aud");
    after.end().await;
}

/// Wiping is for what is withdrawn; what merely can't be made stays.
#[tokio::test(start_paused = true)]
async fn what_is_wiped_does_not_come_back_with_what_stays() {
    let (scene, dir) = (Scene::new(), directory());
    scene.sources().put("a", "x=1 n=7");
    let keys = keys(&[
        ("secret.countersign.dev/x", "s:a#x"),
        ("template.countersign.dev/n", r#"{{ secret("s:a").n + 1 if secret("s:a").n == "8" else "ok" }}"#),
        ("countersign.dev/on-revoked", "wipe"),
    ]);
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    assert_eq!((read(&dir, "x").as_str(), read(&dir, "n").as_str()), ("1", "ok"));
    scene.sources().put("a", "n=8");
    tokio::time::sleep(MINUTE * 40).await;
    assert!(dir.path().join("x").symlink_metadata().is_err());
    assert_eq!((svid(&dir).as_str(), read(&dir, "n").as_str()), ("2", "ok"));
    scene.end().await;
}
