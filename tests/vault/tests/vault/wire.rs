//! Requests as they are on the wire, for servers that no package builds: OpenBao and Vault Enterprise.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::SOON;
use countersign_tests::reader::read_file;
use countersign_tests::tokens::decode;
use countersign_vault_tests::authority::Authority;
use countersign_vault_tests::impostor::{Impostor, on_impostor};
use countersign_vault_tests::liar::{Liar, Lie, Request, TOKEN, VALUE};
use serde_json::{Map, Value, json};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::asking::{one, pod};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("wire::jwt", Needs::Root, jwt),
        case("wire::spiffe_by_token", Needs::Root, spiffe_by_token),
        case("wire::spiffe_by_certificate", Needs::Root, spiffe_by_certificate),
        case("wire::inline", Needs::Root, inline),
        case("wire::inline_fails", Needs::Root, inline_fails),
        case("wire::namespaces", Needs::Root, namespaces),
        case("wire::parameters", Needs::Root, parameters),
    ]
}

const PASSWORD: &str = "vault:kv/data/payments#password";
const READ: &str = "/v1/kv/data/payments";
const ID: &str = "spiffe://example.org/ns/payments/sa/api";

/// Publishes a volume with one reference, takes it away, and answers all requests that came.
async fn requests(reference: &str, change: impl FnOnce(&mut Map<String, Value>)) -> Result<Vec<Request>> {
    let mut seen = Vec::new();
    let authority = Authority::new("liar")?;
    let liar = Liar::start(&authority).await?;
    on_impostor(liar, &authority, change, async |impostor: &mut Impostor| {
        let mut volume = impostor.node.published(&pod("api-1"), one(reference)).await?;
        ensure!(read_file(&volume.target(), "a")?.contains(VALUE), "the value");
        volume.unpublish(SOON).await?;
        seen = impostor.liar.seen();
        Ok(())
    })
    .await?;
    Ok(seen)
}

fn login(value: Value) -> impl FnOnce(&mut Map<String, Value>) {
    move |store| drop(store.insert("login".to_owned(), value))
}

fn find<'a>(seen: &'a [Request], path: &str) -> Result<&'a Request> {
    let paths: Vec<_> = seen.iter().map(Request::path).collect();
    seen.iter().find(|request| request.path() == path).with_context(|| format!("no {path} in {paths:?}"))
}

/// The claims of a JWT-SVID for Vault.
fn for_vault(token: &str) -> Result<()> {
    let claims = decode(token)?;
    ensure!(
        claims["sub"] == ID && (claims["aud"] == "vault" || claims["aud"] == json!(["vault"])),
        "{claims}"
    );
    Ok(())
}

/// What every request has.
fn ours(request: &Request) -> Result<()> {
    ensure!(request.header("x-vault-request") == Some("true"), "X-Vault-Request: {request:?}");
    ensure!(request.header("content-length") != Some("0") || request.method != "GET", "a body in a GET");
    Ok(())
}

async fn jwt() -> Result<()> {
    let seen = requests(PASSWORD, |_| {}).await?;
    seen.iter().try_for_each(ours)?;
    let login = find(&seen, "/v1/auth/jwt/login")?;
    ensure!(matches!(login.method.as_str(), "POST" | "PUT"), "{}", login.method);
    let body = login.json()?;
    ensure!(body["role"] == "payments_api", "{}", body["role"]);
    for_vault(body["jwt"].as_str().context("a JWT")?)?;
    ensure!(login.header("x-vault-token").is_none(), "a login has no token");
    ensure!(login.header("authorization").is_none(), "nor this header");
    let read = find(&seen, READ)?;
    ensure!(read.method == "GET" && read.header("x-vault-token") == Some(TOKEN), "{}", read.method);
    Ok(())
}

async fn spiffe_by_token() -> Result<()> {
    let seen = requests(PASSWORD, login(json!({"method": "spiffe", "role": "payments"}))).await?;
    let login = find(&seen, "/v1/auth/spiffe/login")?;
    let bearer =
        login.header("authorization").and_then(|it| it.strip_prefix("Bearer ")).context("a bearer")?;
    for_vault(bearer)?;
    ensure!(login.json()? == json!({"role": "payments", "type": "jwt"}), "{}", login.json()?);
    ensure!(find(&seen, READ)?.header("authorization").is_none(), "the SVID is for the login alone");
    Ok(())
}

/// The connection that logs in shows the pod's certificate, and no other does.
async fn spiffe_by_certificate() -> Result<()> {
    let authority = Authority::new("liar")?;
    let liar = Liar::start(&authority).await?;
    let change = login(json!({"method": "spiffe", "with": "cert", "role": "{ns}_{sa}"}));
    on_impostor(liar, &authority, change, async |impostor: &mut Impostor| {
        let mut volume = impostor.node.published(&pod("api-1"), one(PASSWORD)).await?;
        ensure!(read_file(&volume.target(), "a")? == VALUE, "the value");
        volume.unpublish(SOON).await?;
        let seen = impostor.liar.seen();
        seen.iter().try_for_each(ours)?;
        let path = "/v1/auth/spiffe/login";
        let login = find(&seen, path)?;
        ensure!(matches!(login.method.as_str(), "POST" | "PUT"), "{}", login.method);
        ensure!(login.json()? == json!({"role": "payments_api", "type": "cert"}), "{}", login.json()?);
        ensure!(login.header("authorization").is_none(), "no JWT-SVID beside it");
        ensure!(login.header("x-vault-token").is_none(), "and no token");
        of_the_pod(login.certificate.as_deref().context("no certificate was shown")?, impostor)?;
        let others = seen.iter().filter(|request| request.path() != path);
        let shown: Vec<_> =
            others.filter(|request| request.certificate.is_some()).map(Request::path).collect();
        ensure!(shown.is_empty(), "it is for the login alone, not for {shown:?}");
        ensure!(find(&seen, READ)?.header("x-vault-token") == Some(TOKEN), "the token of the login");
        Ok(())
    })
    .await
}

/// Sees that this is an SVID of the pod's, signed by the trust domain's authority.
fn of_the_pod(shown: &[u8], impostor: &Impostor) -> Result<()> {
    let (_, leaf) = X509Certificate::from_der(shown)?;
    let names = leaf.subject_alternative_name()?.context("no names")?;
    ensure!(
        matches!(names.value.general_names.as_slice(), [GeneralName::URI(uri)] if *uri == ID),
        "{:?}",
        names.value
    );
    let bundle = std::fs::read(&impostor.node.layout.bundle)?;
    for root in Pem::iter_from_buffer(&bundle) {
        let root = root?;
        if leaf.verify_signature(Some(root.parse_x509()?.public_key())).is_ok() {
            return Ok(());
        }
    }
    anyhow::bail!("no root of the trust domain has signed it")
}

/// One header of OpenBao's inline login: its parameter's name and value.
fn parameter(request: &Request, name: &str) -> Result<Value> {
    let header = format!("x-vault-inline-auth-parameter-{name}");
    let text = request.header(&header).with_context(|| format!("no {header}"))?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text)?)?)
}

async fn inline() -> Result<()> {
    let seen = requests(PASSWORD, login(json!({"method": "inline", "role": "{ns}_{sa}"}))).await?;
    ensure!(!seen.iter().any(|request| request.path().ends_with("/login")), "no login of its own");
    let read = find(&seen, READ)?;
    ensure!(read.header("x-vault-token").is_none(), "and no token");
    ensure!(read.header("x-vault-inline-auth-path") == Some("auth/jwt/login"), "{read:?}");
    ensure!(parameter(read, "role")? == json!({"key": "role", "value": "payments_api"}), "the role");
    let token = parameter(read, "jwt")?;
    ensure!(token["key"] == "jwt", "the name of the parameter");
    for_vault(token["value"].as_str().context("a JWT")?)?;
    ensure!(
        seen.iter().all(|request| request.path() != "/v1/auth/token/revoke-self"),
        "nothing to give back"
    );
    Ok(())
}

/// A login that fails is told from a read that does.
async fn inline_fails() -> Result<()> {
    let authority = Authority::new("liar")?;
    let liar = Liar::start(&authority).await?;
    let change = login(json!({"method": "inline", "role": "{ns}_{sa}"}));
    on_impostor(liar, &authority, change, async |impostor: &mut Impostor| {
        impostor.liar.says(|request| {
            let body = json!({"errors": ["role \"payments_api\" could not be found"]}).to_string();
            let headers = [("X-Vault-Inline-Auth-Failed", "true"), ("Content-Type", "application/json")];
            (request.path() == READ).then(|| Lie::answer(400, &headers, body.as_bytes()))
        });
        let status = crate::asking::refusal(&impostor.node, PASSWORD).await?;
        crate::asking::says(&status, tonic::Code::PermissionDenied, &["payments_api", "login"])
    })
    .await
}

async fn namespaces() -> Result<()> {
    let change = |store: &mut Map<String, Value>| {
        store.insert("namespace".to_owned(), json!("team-a"));
        store.insert("login".to_owned(), json!({"role": "r", "namespace": "admin"}));
    };
    let seen = requests("vault:kv/data/payments#password?vault.namespace=b", change).await?;
    let login = find(&seen, "/v1/auth/jwt/login")?;
    ensure!(login.header("x-vault-namespace") == Some("admin"), "the login's own");
    let read = find(&seen, READ)?;
    ensure!(read.header("x-vault-namespace") == Some("team-a/b"), "beneath the store's: {read:?}");
    Ok(())
}

/// Parameters become a body, or a query where it is said that this is a GET.
async fn parameters() -> Result<()> {
    let authority = Authority::new("liar")?;
    let liar = Liar::start(&authority).await?;
    on_impostor(
        liar,
        &authority,
        |_| {},
        async |impostor: &mut Impostor| {
            impostor.liar.says(|request| {
                let engine = request.path().starts_with("/v1/engine/");
                let mount = request.path().starts_with("/v1/sys/internal/ui/mounts/engine");
                if mount {
                    return Some(Lie::json(
                        200,
                        &json!({"data": {"type": "aws", "path": "engine/", "options": null}}),
                    ));
                }
                engine.then(|| {
                    Lie::json(200, &json!({"request_id": "x", "lease_id": "", "data": {"x": VALUE}}))
                })
            });
            let asked = one("vault:engine/x#x?name=a b&flag=true&body.version=3&mode=0400")
                .secret("b", "vault:engine/y#x?name=a/b&vault.method=get");
            let mut volume = impostor.node.published(&pod("api-1"), asked).await?;
            let seen = impostor.liar.seen();
            let post = find(&seen, "/v1/engine/x")?;
            ensure!(matches!(post.method.as_str(), "POST" | "PUT"), "{}", post.method);
            ensure!(
                post.json()? == json!({"name": "a b", "flag": "true", "version": "3"}),
                "{}",
                post.json()?
            );
            let get = find(&seen, "/v1/engine/y")?;
            ensure!(get.method == "GET" && get.body.is_empty(), "{}", get.method);
            ensure!(
                matches!(get.target.as_str(), "/v1/engine/y?name=a%2Fb" | "/v1/engine/y?name=a/b"),
                "{}",
                get.target
            );
            volume.unpublish(SOON).await
        },
    )
    .await
}
