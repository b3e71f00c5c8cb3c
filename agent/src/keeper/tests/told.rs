//! What pods are told by events, and what other roots set going.

use super::*;
use crate::kubernetes::events::{Note, Reason};

fn scene() -> (Scene, tokio::sync::mpsc::Receiver<Note>) {
    let (recorder, told) = Recorder::pair();
    (Scene::telling(recorder), told)
}

fn next(told: &mut tokio::sync::mpsc::Receiver<Note>) -> Option<(Reason, String)> {
    told.try_recv().ok().map(|note| {
        assert_eq!(note.workload.pod_name, "p");
        (note.reason, note.message)
    })
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_is_told_once_and_so_is_its_recovery() {
    let (scene, mut told) = scene();
    let dir = directory();
    scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap();
    scene.sources().fail(down());
    tokio::time::sleep(MINUTE * 20).await;
    let message =
        "the files stay as they were: secret.countersign.dev/a: store s: connection refused".to_owned();
    assert_eq!(next(&mut told), Some((Reason::RefreshFailing, message)));
    assert_eq!(next(&mut told), None, "one trouble is one event");
    scene.sources().heal();
    tokio::time::sleep(MINUTE * 20).await;
    assert_eq!(
        next(&mut told),
        Some((Reason::RefreshRecovered, "the files are up to date again".to_owned()))
    );
    assert_eq!(next(&mut told), None);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn every_key_that_asks_for_what_is_refused_is_named() {
    let (scene, mut told) = scene();
    scene.sources().put("b", "bee");
    let dir = directory();
    let keys = [
        ("secret.countersign.dev/x", "s:b"),
        ("secret.countersign.dev/a", "s:a"),
        ("secret.countersign.dev/deep/a", "s:a?mode=0400"),
        ("template.countersign.dev/t", r#"{% if secret("s:b") == "wasp" %}{{ secret("s:a") }}{% endif %}"#),
        ("template.countersign.dev/u", r#"{{ secret("s:a") }}"#),
    ];
    scene.sources().remove("a");
    let first = scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap_err();
    let text = "secret.countersign.dev/a, secret.countersign.dev/deep/a, template.countersign.dev/u: s:a: no such secret";
    assert_eq!((first.code(), first.to_string().as_str()), (Code::NotFound, text));
    scene.sources().put("a", "one");
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    scene.sources().remove("a");
    tokio::time::sleep(MINUTE * 2).await;
    // Once there are files it is the last answer that goes on serving all who may ask for it.
    let text = "the files stay as they were: secret.countersign.dev/a, secret.countersign.dev/deep/a, \
                template.countersign.dev/t and 1 more: s:a: no such secret";
    assert_eq!(next(&mut told), Some((Reason::RefreshFailing, text.to_owned())));
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_kubelet_tells_itself_is_not_told_again() {
    let (scene, mut told) = scene();
    let dir = directory();
    scene.sources().fail(down());
    scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap_err();
    scene.sources().heal();
    scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap();
    tokio::time::sleep(MINUTE * 5).await;
    assert_eq!(next(&mut told), None);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_identity_near_its_end_is_told_of() {
    let (scene, mut told) = scene();
    let dir = directory();
    scene.publish("v", "a", SECRET, Some(dir.path())).await.unwrap();
    let problem = "the issuer at i:8443: Connection refused".to_owned();
    scene.sources().fail_identity(Some(Error::IdentityUnavailable { problem }));
    // Renewal is due half-way, and fails from then on.
    tokio::time::sleep(MINUTE * 44).await;
    assert_eq!(next(&mut told).unwrap().0, Reason::RefreshFailing);
    assert_eq!(next(&mut told), None);
    tokio::time::sleep(MINUTE * 3).await;
    let (reason, message) = next(&mut told).unwrap();
    assert_eq!(reason, Reason::IdentityEnding);
    assert_eq!(
        message,
        "spiffe://t/ns/n/sa/a ends at 2023-11-14T23:13:20Z and could not be renewed: identity: the issuer at \
         i:8443: Connection refused"
    );
    assert_eq!(next(&mut told), None, "once");
    scene.sources().fail_identity(None);
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(next(&mut told).unwrap().0, Reason::RefreshRecovered);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn other_roots_set_every_volume_going_and_ask_nobody() {
    let scene = Scene::new();
    let dirs = [directory(), directory()];
    for (id, dir) in ["v", "w"].iter().zip(&dirs) {
        scene.publish(id, id, SECRET, Some(dir.path())).await.unwrap();
    }
    let turns = || {
        let text = scene.metrics.text().unwrap();
        let line = text.lines().find(|line| line.starts_with("countersign_turns_total{result=\"ok\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).unwrap_or_default()
    };
    let (before, asked) = (turns(), (scene.sources().reads(), scene.sources().signed()));
    scene.sources().roots.send_replace(Arc::new(vec![b"another root".to_vec()]));
    while turns() < before + 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!((scene.sources().reads(), scene.sources().signed()), asked);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_runs_is_told_which_files_have_changed_and_one_that_starts_is_not() {
    let (notifier, mut next) = Notifier::pair();
    let scene = Scene::with(Recorder::off(), notifier);
    let dir = directory();
    let keys = [
        ("secret.countersign.dev/one", "s:a"),
        ("secret.countersign.dev/two", "s:b"),
        ("countersign.dev/on-change", "post:8080/-/reload"),
    ];
    scene.sources().put("b", "same");
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    assert!(next().is_none(), "nobody listens before the files are there");
    scene.sources().put("a", "changed");
    tokio::time::sleep(MINUTE * 3).await;
    let notice = next().unwrap();
    assert_eq!(notice.target.to_string(), "post:8080/-/reload");
    assert_eq!(notice.files.iter().collect::<Vec<_>>(), ["one"]);
    assert!(dir.path().join(&notice.generation).is_dir());
    tokio::time::sleep(MINUTE * 3).await;
    assert!(next().is_none(), "nothing has changed since");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_cannot_be_told_does_not_start_and_one_that_has_its_files_keeps_them_fresh() {
    let (notifier, mut next) = Notifier::pair();
    let scene = Scene::with(Recorder::off(), notifier);
    let dir = directory();
    let keys = [("secret.countersign.dev/a", "s:a"), ("countersign.dev/on-change", "signal:HUP")];
    let unheard =
        || Publish { unheard: Some("it is switched off"), ..publish("v", "a", &keys, Some(dir.path())) };
    let refused = scene.handle.publish(unheard()).await.unwrap_err();
    assert_eq!(refused.to_string(), "countersign.dev/on-change: it is switched off");
    assert_eq!(refused.code(), Code::InvalidArgument);

    // As after an upgrade that switched it off: the files are there, and the agent is new.
    scene.publish("v", "a", &keys, Some(dir.path())).await.unwrap();
    scene.handle.reconcile(Vec::new()).await.unwrap();
    scene.handle.publish(unheard()).await.unwrap();
    scene.sources().put("a", "changed");
    tokio::time::sleep(MINUTE * 3).await;
    assert_eq!(std::fs::read_to_string(dir.path().join("..data/a")).unwrap(), "changed");
    assert!(next().is_none(), "nobody is told where it is switched off");
    scene.end().await;
}
