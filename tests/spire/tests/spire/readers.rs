//! Programs that take their TLS identity from files, and what they do when SPIRE renews it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use countersign_cluster::pods::until;
use countersign_spire_tests::entry::Entry;
use countersign_spire_tests::nginx;
use countersign_spire_tests::postgres::Postgres;
use countersign_spire_tests::program::{Program, java, openssl_pkcs12, read_pkcs12};
use countersign_spire_tests::world::{Case, Kind, World, case, files, follow, volume};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::life::{INJECT, SOON, X509, id};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("a_go_program_and_openssl_follow_each_renewal", Kind::Harmless, go_program),
        case("java_speaks_tls_with_each_renewed_key_store", Kind::Harmless, java_program),
        case("postgresql_serves_each_renewed_certificate", Kind::Harmless, postgres),
        case("a_program_is_told_of_a_renewal", Kind::Harmless, told),
        case("nginx_is_signalled_and_serves_each_renewed_certificate", Kind::Harmless, signalled),
    ]
}

async fn go_program(world: Arc<World>) -> Result<()> {
    let space = world.space("golang").await?;
    world.spire.create(&Entry::account("golang", "default").living(40))?;
    let stores =
        [X509, ("svid.countersign.dev/p12", "tls.p12"), ("svid.countersign.dev/p12-truststore", "ca.p12")];
    let pod = space.start("web", &stores).await?;
    let (place, mut follower) = (volume(&pod)?, follow(&pod)?);
    let mut last = files(&pod)?;
    let program = Program::start(&world.directory, &place).await?;
    for renewals in 0..3 {
        if renewals > 0 {
            let renewed = |files: &_| leaf(files) != leaf(&last);
            last = follower.becomes(SOON, "renewed", renewed).await?;
        }
        let (client, server) = program.greets()?;
        ensure!(client == id("golang"), "the client was taken for {client}");
        ensure!(server == leaf(&last), "another certificate than the file's");
        let (keystore, truststore) = (place.join("..data/tls.p12"), place.join("..data/ca.p12"));
        for (file, which, pem) in [
            (&keystore, "-nokeys", "tls.crt"),
            (&keystore, "-nocerts", "tls.key"),
            (&truststore, "-nokeys", "ca.crt"),
        ] {
            let read = openssl_pkcs12(file, "changeit", which)?;
            ensure!(read == Some(last.blocks(pem)), "{which} of {} is not {pem}", file.display());
            ensure!(openssl_pkcs12(file, "changed", which)?.is_none(), "any password is taken");
        }
        let read = read_pkcs12(&keystore, &truststore)?;
        let expected =
            format!("{} {} [{}]", last.blocks("tls.crt").len(), last.blocks("ca.crt").len(), id("golang"));
        ensure!(read == expected, "{read}, not {expected}");
    }
    program.end()?;
    space.remove().await
}

async fn java_program(world: Arc<World>) -> Result<()> {
    let space = world.space("java").await?;
    world.spire.create(&Entry::account("java", "default").living(60))?;
    let stores = [
        X509,
        ("svid.countersign.dev/p12", "tls.p12"),
        ("svid.countersign.dev/p12-truststore", "ca.p12"),
        ("svid.countersign.dev/jks-truststore", "ca.jks"),
    ];
    let pod = space.start("web", &stores).await?;
    let (place, mut follower) = (volume(&pod)?, follow(&pod)?);
    let before = files(&pod)?;
    let speaks = |files: &countersign_spire_tests::files::Files| {
        let at = |name: &str| place.join("..data").join(name);
        let expected = format!("{0} {0} {1}", id("java"), files.blocks("ca.crt").len());
        for (truststore, kind) in [("ca.p12", "PKCS12"), ("ca.jks", "JKS")] {
            let said = java(&at("tls.p12"), &at(truststore), kind)?;
            ensure!(said == expected, "{said}, not {expected}, with {truststore}");
        }
        Ok(())
    };
    speaks(&before)?;
    let after = follower.becomes(SOON, "renewed", |files| leaf(files) != leaf(&before)).await?;
    speaks(&after)?;
    space.remove().await
}

fn leaf(files: &countersign_spire_tests::files::Files) -> Vec<u8> {
    files.blocks("tls.crt").into_iter().next().unwrap_or_default()
}

async fn postgres(world: Arc<World>) -> Result<()> {
    let space = world.space("postgres").await?;
    world.spire.create(&Entry::account("postgres", "default").living(40))?;
    let pod = space.start("db", &[("svid.countersign.dev/x509", "tls.crt,tls.key?mode=0400,ca.crt")]).await?;
    let mut follower = follow(&pod)?;
    let before = files(&pod)?;
    let postgres = Postgres::start(&volume(&pod)?).await?;
    let who = "SELECT issuer_dn IS NOT NULL FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    ensure!(postgres.sql(who)? == "t", "the client showed no certificate");
    ensure!(postgres.serves()? == leaf(&before), "another certificate than the file's");
    let after = follower.becomes(SOON, "renewed", |files| leaf(files) != leaf(&before)).await?;
    ensure!(postgres.sql("SELECT pg_reload_conf()")? == "t");
    let new = async || Ok((postgres.serves()? == leaf(&after)).then_some(()));
    until(SOON, "serving the new certificate", new).await?;
    ensure!(postgres.sql(who)? == "t", "the client showed no certificate");
    let said = postgres.said()?;
    ensure!(!said.contains("could not load") && !said.contains("private key file"), "{said}");
    space.remove().await
}

/// Answers each request, and prints what was asked.
const LISTENER: &str = r"while :; do
  printf 'HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n' | nc -l -p 8080 >/tmp/asked
  cat /tmp/asked; echo
done";

async fn told(world: Arc<World>) -> Result<()> {
    let space = world.space("told").await?;
    world.spire.create(&Entry::account("told", "default").living(20))?;
    let mut manifest =
        space.manifest("api", &[INJECT, X509, ("countersign.dev/on-change", "post:8080/-/reload")]);
    manifest["spec"]["containers"][0]["command"] = json!(["sh", "-c", LISTENER]);
    let pod = space.start_from(&manifest).await?;
    let before = files(&pod)?;
    follow(&pod)?.becomes(SOON, "renewed", |files| leaf(files) != leaf(&before)).await?;
    let told = async || {
        let log = space.log("api", "main").await?;
        let called = log.contains("POST /-/reload") && log.contains(r#""changed":["tls.crt","tls.key"]"#);
        Ok(called.then_some(log))
    };
    let log = until(SOON, "told", told).await?;
    // Nothing of the key goes along.
    let key = before.blocks("tls.key").pop().context("a key")?;
    ensure!(!log.contains("PRIVATE") && !log.contains(&format!("{key:?}")), "{log}");
    space.remove().await
}

async fn signalled(world: Arc<World>) -> Result<()> {
    const RENEWALS: u32 = 3;
    let space = world.space("signalled").await?;
    world.spire.create(&Entry::account("signalled", "default").living(40))?;
    nginx::image(&world.directory)?;
    let asks = [INJECT, X509, ("countersign.dev/on-change", "signal:HUP@nginx")];
    let mut manifest = space.manifest("web", &asks);
    manifest["spec"]["containers"] = json!([{
        "name": "main", "image": nginx::IMAGE, "imagePullPolicy": "Never",
        "securityContext": {"runAsUser": 101, "runAsGroup": 101, "runAsNonRoot": true},
        "readinessProbe": {"tcpSocket": {"port": nginx::PORT}, "periodSeconds": 1},
    }]);
    let pod = space.start_from(&manifest).await?;
    let mut follower = follow(&pod)?;
    let mut last = files(&pod)?;
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).context("an address")?;
    let (address, roots) = (SocketAddr::new(address.parse()?, nginx::PORT), volume(&pod)?.join("ca.crt"));
    ensure!(nginx::shown(address, &roots)? == leaf(&last), "another certificate than the file's");
    for _ in 0..RENEWALS {
        last = follower.becomes(SOON, "renewed", |files| leaf(files) != leaf(&last)).await?;
        ensure!(last.identity()? == id("signalled"));
        // Nobody but us tells it; and it answers all the while.
        let new = async || Ok((nginx::shown(address, &roots)? == leaf(&last)).then_some(()));
        until(SOON, "serving the new certificate", new).await?;
    }
    let log = space.log("web", "main").await?;
    nginx::content(&log)?;
    let reloads = u32::try_from(log.matches("(SIGHUP) received").count())?;
    // The master is told, once for each change at most; its workers would say so as well.
    follower.becomes(SOON, "there", |_| true).await?;
    ensure!((RENEWALS..=follower.swaps).contains(&reloads), "{reloads} signals: {log}");
    let told = space.events("web").await?;
    ensure!(!told.iter().any(|event| event.contains("ChangeNotTold")), "{told:#?}");
    let pod = space.api::<Pod>().get("web").await?;
    let containers = pod.status.and_then(|status| status.container_statuses).context("containers")?;
    ensure!(containers.iter().all(|container| container.restart_count == 0), "it was started again");
    space.remove().await
}
