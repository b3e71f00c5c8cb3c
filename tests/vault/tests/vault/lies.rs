//! What a real Vault cannot be made to do: answers that are cut, slow, enormous, of somebody else, or no answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, eventually};
use countersign_tests::reader::read_file;
use countersign_vault_tests::authority::Authority;
use countersign_vault_tests::impostor::{Impostor, on_impostor};
use countersign_vault_tests::liar::{Liar, Lie, Request, TOKEN, VALUE, answer, honest};
use serde_json::json;
use tonic::Code;

use crate::asking::{one, pod, says};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("lies::an_honest_answer_is_believed", Needs::Root, an_honest_answer_is_believed),
        case("lies::a_redirect_is_never_followed", Needs::Root, a_redirect_is_never_followed),
        case("lies::answers_of_no_vault", Needs::Root, answers_of_no_vault),
        case("lies::cut_at_every_byte", Needs::Root, cut_at_every_byte),
        case("lies::slow_headers", Needs::Root, slow_headers),
        case("lies::too_many_requests", Needs::Root, too_many_requests),
        case("lies::not_on_this_node_yet", Needs::Root, not_on_this_node_yet),
        case("lies::plain_http", Needs::Root, plain_http),
        case("lies::another_name", Needs::Root, another_name),
        case("lies::another_authority", Needs::Root, another_authority),
    ]
}

const PASSWORD: &str = "vault:kv/data/payments#password";
const READ: &str = "/v1/kv/data/payments";

/// Runs `body` on a node that takes a liar for its Vault, with a short patience.
async fn with_liar(body: impl AsyncFnOnce(&mut Impostor) -> Result<()>) -> Result<()> {
    let authority = Authority::new("liar")?;
    let liar = Liar::start(&authority).await?;
    let impatient = |store: &mut serde_json::Map<_, _>| drop(store.insert("timeout".to_owned(), json!("2s")));
    on_impostor(liar, &authority, impatient, body).await
}

/// What a pod is told, at its first try.
async fn told(impostor: &Impostor) -> Result<tonic::Status> {
    crate::asking::refusal(&impostor.node, PASSWORD).await
}

/// It heals: when the server is honest again, the pod starts.
async fn heals(impostor: &Impostor) -> Result<()> {
    impostor.liar.repents();
    let mut volume = impostor.node.volume(&pod("healed"), one(PASSWORD));
    volume.publish(SOON).await?;
    ensure!(read_file(&volume.target(), "a")? == VALUE, "the value");
    volume.unpublish(SOON).await
}

async fn an_honest_answer_is_believed() -> Result<()> {
    with_liar(async |impostor| {
        heals(impostor).await?;
        let read =
            impostor.liar.seen().into_iter().find(|request| request.path() == READ).context("a read")?;
        ensure!(read.header("x-vault-token") == Some(TOKEN), "with the token of the login");
        Ok(())
    })
    .await
}

async fn a_redirect_is_never_followed() -> Result<()> {
    let authority = Authority::new("elsewhere")?;
    let elsewhere = Liar::start(&authority).await?;
    let target = elsewhere.url();
    with_liar(async |impostor| {
        for status in [301, 302, 307, 308] {
            let to = format!("{target}{READ}");
            impostor.liar.says(move |request| {
                let redirect = Lie::answer(status, &[("Location", to.as_str())], b"");
                (request.path() == READ).then_some(redirect)
            });
            let answer = told(impostor).await?;
            says(&answer, Code::Unavailable, &["redirect"]).with_context(|| status.to_string())?;
            ensure!(!answer.message().contains(TOKEN), "the token is told");
        }
        ensure!(elsewhere.seen().is_empty(), "nobody came");
        heals(impostor).await
    })
    .await
}

/// Each is refused with words that say what it was, and none is taken for a secret.
async fn answers_of_no_vault() -> Result<()> {
    with_liar(async |impostor| {
        let html = b"<html><body>Please sign in</body></html>".to_vec();
        let huge =
            format!("{{\"data\":{{\"data\":{{\"password\":\"{}\"}}}}}}", "x".repeat(5 << 20)).into_bytes();
        let page = [("Content-Type", "text/html")];
        let json = [("Content-Type", "application/json")];
        let table: Vec<(&str, Vec<u8>, &[&str])> = vec![
            ("a page", answer(200, &page, &html), &["JSON"]),
            ("a page that says it is JSON", answer(200, &json, &html), &["JSON"]),
            ("a list", answer(200, &json, b"[1,2]"), &["vault"]),
            ("nothing", answer(200, &json, b""), &["vault"]),
            ("no data", answer(200, &json, b"{\"request_id\":\"x\"}"), &["data"]),
            ("five megabytes", answer(200, &json, &huge), &["longer"]),
            ("a gateway's 502", answer(502, &page, &html), &["502"]),
            ("a teapot", answer(418, &json, b"{}"), &["418"]),
            ("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), &["vault"]),
            (
                "a deep document",
                answer(200, &json, &[vec![b'['; 100_000], vec![b']'; 100_000]].concat()),
                &["vault"],
            ),
        ];
        let mut wrong = Vec::new();
        for (what, bytes, fragments) in table {
            let bytes = Arc::new(bytes);
            impostor.liar.says(move |request| (request.path() == READ).then(|| Lie::Bytes(bytes.to_vec())));
            let status = told(impostor).await.context(what)?;
            // Or its address would be left alone before the table ends.
            heals(impostor).await.context(what)?;
            ensure!(status.message().len() < 1000, "{what}: {} bytes are told", status.message().len());
            let code = status.code();
            if !matches!(code, Code::Unavailable | Code::FailedPrecondition) {
                wrong.push(format!("{what}: {code:?}: {}", status.message()));
            }
            if let Err(error) = says(&status, code, fragments) {
                wrong.push(format!("{what}: {error:#}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
    .await
}

/// Whatever is missing of an answer, half a secret is never taken for one.
///
/// Every address of the store is the same server under another prefix: an answer that is cut is trouble of one
/// address, so one publish asks them all, and each cuts one byte later than the one before.
async fn cut_at_every_byte() -> Result<()> {
    let read = Request { target: READ.to_owned(), ..Request::default() };
    let Lie::Bytes(whole) = honest(&read) else { anyhow::bail!("bytes") };
    let length = whole.len();
    let authority = Authority::new("liar")?;
    let liar = Liar::start(&authority).await?;
    let addresses: Vec<_> = (0..=length).map(|at| format!("{}/{at}", liar.url())).collect();
    liar.says(move |request| {
        let (at, path) = request.target.strip_prefix('/')?.split_once('/')?;
        let request = Request { target: format!("/{path}"), ..request.clone() };
        let cut = if request.path() == READ { at.parse().ok()? } else { length };
        match honest(&request) {
            Lie::Bytes(bytes) => Some(Lie::Bytes(bytes.get(..cut).map(<[u8]>::to_vec).unwrap_or(bytes))),
            other @ (Lie::Slowly(..) | Lie::Silence) => Some(other),
        }
    });
    let all =
        |store: &mut serde_json::Map<_, _>| drop(store.insert("addresses".to_owned(), json!(addresses)));
    on_impostor(liar, &authority, all, async |impostor| {
        let mut volume = impostor.node.published(&pod("api-1"), one(PASSWORD)).await?;
        ensure!(read_file(&volume.target(), "a")? == VALUE, "the whole value");
        let seen = impostor.liar.seen();
        let last = seen.iter().rfind(|request| request.path().ends_with(READ)).context("a read")?;
        ensure!(
            last.path() == format!("/{length}{READ}"),
            "an answer was taken that was cut: {}",
            last.path()
        );
        volume.unpublish(SOON).await
    })
    .await
}

async fn slow_headers() -> Result<()> {
    with_liar(async |impostor| {
        impostor.liar.says(|request| {
            let bytes = answer(200, &[("Content-Type", "application/json")], b"{}");
            (request.path() == READ).then(|| Lie::Slowly(bytes, Duration::from_millis(500)))
        });
        let status = told(impostor).await?;
        ensure!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{status:?}");
        impostor.liar.says(|request| (request.path() == READ).then_some(Lie::Silence));
        let status = told(impostor).await?;
        ensure!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{status:?}");
        heals(impostor).await
    })
    .await
}

/// `Retry-After` is obeyed: however often kubelet asks, Vault is left alone until then.
async fn too_many_requests() -> Result<()> {
    with_liar(async |impostor| {
        impostor.liar.says(|request| {
            let body = json!({"errors": ["request path \"kv/data/payments\": rate limit quota exceeded"]});
            let headers = [("Retry-After", "3"), ("Content-Type", "application/json")];
            (request.path() == READ).then(|| Lie::answer(429, &headers, body.to_string().as_bytes()))
        });
        let mut volume = impostor.node.volume(&pod("api-1"), one(PASSWORD));
        for _ in 0..5 {
            let status = volume.publish_once().await.err().context("it is refused")?;
            says(&status, Code::Unavailable, &["429"])?;
        }
        ensure!(
            impostor.liar.count(READ) == 1,
            "it was asked {} times in three seconds",
            impostor.liar.count(READ)
        );
        impostor.liar.repents();
        volume.publish(SOON).await?;
        volume.unpublish(SOON).await
    })
    .await
}

/// 412: a node that has not heard of the token yet. 473: a standby. Both are asked again, without a new login.
async fn not_on_this_node_yet() -> Result<()> {
    with_liar(async |impostor| {
        for status in [412, 473, 503, 500] {
            let asked = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&asked);
            impostor.liar.says(move |request| {
                let first = request.path() == READ && counter.fetch_add(1, Ordering::SeqCst) == 0;
                first.then(|| Lie::json(status, &json!({"errors": ["not now"]})))
            });
            let mut volume = impostor.node.volume(&pod("api-1"), one(PASSWORD));
            volume.publish(SOON).await.with_context(|| status.to_string())?;
            volume.unpublish(SOON).await?;
            ensure!(asked.load(Ordering::SeqCst) == 2, "{status}: asked {asked:?} times");
        }
        Ok(())
    })
    .await
}

async fn plain_http() -> Result<()> {
    let authority = Authority::new("liar")?;
    let liar = Liar::in_the_clear().await?;
    on_impostor(
        liar,
        &authority,
        |_| {},
        async |impostor| {
            let status = told(impostor).await?;
            says(&status, Code::Unavailable, &["TLS", "http"])?;
            ensure!(impostor.liar.seen().is_empty(), "nothing was said in the clear");
            Ok(())
        },
    )
    .await
}

async fn another_name() -> Result<()> {
    let authority = Authority::new("liar")?;
    let liar = Liar::with_certificate(&authority.certificate(&["vault.example.com"])?).await?;
    on_impostor(
        liar,
        &authority,
        |_| {},
        async |impostor| {
            let status = told(impostor).await?;
            says(&status, Code::Unavailable, &["certificate", "serverName"])?;
            ensure!(impostor.liar.seen().is_empty(), "nothing was said");
            Ok(())
        },
    )
    .await?;
    // Told the name, it is the right one.
    let liar = Liar::with_certificate(&authority.certificate(&["vault.example.com"])?).await?;
    let name = |store: &mut serde_json::Map<_, _>| {
        drop(store.insert("serverName".to_owned(), json!("vault.example.com")));
    };
    on_impostor(liar, &authority, name, async |impostor| heals(impostor).await).await
}

async fn another_authority() -> Result<()> {
    let (theirs, ours) = (Authority::new("theirs")?, Authority::new("ours")?);
    let liar = Liar::start(&theirs).await?;
    on_impostor(
        liar,
        &ours,
        |_| {},
        async |impostor| {
            let status = told(impostor).await?;
            says(&status, Code::Unavailable, &["certificate", "caFile"])?;
            ensure!(impostor.liar.seen().is_empty(), "nothing was said");
            // The roots are read again when they are changed.
            let file = impostor.ca.clone();
            theirs.write(&file)?;
            let again = async || {
                let mut volume = impostor.node.volume(&pod("api-2"), one(PASSWORD));
                let ok = volume.publish_once().await.is_ok();
                volume.unpublish(SOON).await.is_ok() && ok
            };
            eventually(SOON, "the new roots are in use", again).await
        },
    )
    .await
}
