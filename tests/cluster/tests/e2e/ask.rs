//! Pods that ask, by annotation or by a volume of their own, and have what they asked for.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_cluster::chart::TRUST_DOMAIN;
use countersign_cluster::pods::{LIMIT, PATH, idle, name, until};
use countersign_cluster::world::{Case, Kind, World, case};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("annotated_deployment_has_its_files", Kind::Harmless, annotated_deployment).on_older(),
        case("volume_by_hand_has_the_same", Kind::Harmless, inline_volume).on_older(),
        case("users_and_groups_can_read", Kind::Harmless, users).on_older(),
        case("user_namespace_pod_can_read", Kind::Harmless, user_namespace).on_older(),
        case("init_containers_see_the_files", Kind::Harmless, init_containers).on_older(),
        case("each_service_account_has_its_own_identity", Kind::Harmless, identities).on_older(),
        case("job_runs_to_its_end_and_goes", Kind::Harmless, job),
        case("agent_explains_a_pod_that_runs", Kind::Harmless, explained),
    ]
}

/// Claims of a JWT, unverified: a store verifies them.
pub(crate) fn claims(token: &str) -> Result<Value> {
    let payload = token.split('.').nth(1).context("three parts")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?)
}

async fn annotated_deployment(world: Arc<World>) -> Result<()> {
    let space = world.space("deployment").await?;
    let template = "DATABASE_URL=postgres://{{ secret(\"sops:e2e-deployment.db\").username }}:\
                    {{ secret(\"sops:e2e-deployment.db\").password }}@db/app\n";
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}, "annotations": {
                    "countersign.dev/inject": "true",
                    "secret.countersign.dev/db-password": "sops:e2e-deployment.db#password",
                    "secret.countersign.dev/db.json": "sops:e2e-deployment.db",
                    "template.countersign.dev/app.env": template,
                    "svid.countersign.dev/x509": "tls.crt,tls.key,ca.crt",
                    "jwt.countersign.dev/token": "https://api.example.com",
                }},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [idle(world.image())]},
            },
        },
    });
    space.api::<Deployment>().create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
    let pods = until(LIMIT, "two ready pods", async || {
        Ok(Some(space.ready("app=web").await?).filter(|pods| pods.len() == 2))
    });
    for pod in pods.await? {
        let pod = name(&pod)?;
        ensure!(space.file(pod, "db-password").await? == "p4ss");
        let whole: Value = serde_json::from_str(&space.file(pod, "db.json").await?)?;
        ensure!(whole == json!({"username": "app", "password": "p4ss"}), "{whole}");
        ensure!(space.file(pod, "app.env").await? == "DATABASE_URL=postgres://app:p4ss@db/app\n");
        let claims = claims(&space.file(pod, "token").await?)?;
        let id = format!("spiffe://{TRUST_DOMAIN}/ns/e2e-deployment/sa/default");
        ensure!(claims.get("sub") == Some(&json!(id)), "{claims}");
        ensure!(claims.to_string().contains("https://api.example.com"), "{claims}");
        ensure!(space.file(pod, "tls.crt").await?.contains("BEGIN CERTIFICATE"));
        ensure!(space.file(pod, "tls.key").await?.contains("BEGIN PRIVATE KEY"));
        ensure!(space.file(pod, "ca.crt").await?.contains("BEGIN CERTIFICATE"));
        let wrote = space.exec(pod, &["sh", "-c", &format!("touch {PATH}/x 2>&1 || true")]).await?;
        ensure!(wrote.contains("Read-only file system"), "{wrote}");
    }
    space.remove().await
}

async fn inline_volume(world: Arc<World>) -> Result<()> {
    let space = world.space("inline").await?;
    let attributes = json!({
        "secret.countersign.dev/nested/db-password": "sops:e2e-inline.db#password",
        "countersign.dev/refresh": "30s",
    });
    space.start_from(&space.by_hand("by-hand", &attributes)).await?;
    ensure!(space.exec("by-hand", &["cat", "/s/nested/db-password"]).await? == "inline");
    space.remove().await
}

async fn users(world: Arc<World>) -> Result<()> {
    let space = world.space("users").await?;
    for (pod, context, mode) in [
        ("plain", json!({"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true}), "444"),
        (
            "grouped",
            json!({"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true, "fsGroup": 2000}),
            "440 2000",
        ),
    ] {
        let mut manifest = space.manifest(
            pod,
            &[("countersign.dev/inject", "true"), ("secret.countersign.dev/p", "sops:e2e-users.db#password")],
        );
        manifest["spec"]["securityContext"] = context;
        space.start_from(&manifest).await?;
        ensure!(space.file(pod, "p").await? == "for-users");
        let seen = space.exec(pod, &["stat", "-L", "-c", "%a %g", &format!("{PATH}/p")]).await?;
        ensure!(seen.starts_with(mode), "{pod}: {seen}");
    }
    space.remove().await
}

async fn user_namespace(world: Arc<World>) -> Result<()> {
    let space = world.space("userns").await?;
    let mut manifest = space.manifest(
        "mapped",
        &[("countersign.dev/inject", "true"), ("jwt.countersign.dev/token", "https://a.example")],
    );
    manifest["spec"]["hostUsers"] = json!(false);
    manifest["spec"]["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000});
    space.start_from(&manifest).await?;
    let map = space.exec("mapped", &["cat", "/proc/self/uid_map"]).await?;
    ensure!(map.split_whitespace().nth(1).is_some_and(|outside| outside != "0"), "{map}");
    ensure!(claims(&space.file("mapped", "token").await?)?.get("sub").is_some());
    space.remove().await
}

async fn init_containers(world: Arc<World>) -> Result<()> {
    let space = world.space("init").await?;
    let mut manifest = space.manifest(
        "staged",
        &[("countersign.dev/inject", "true"), ("secret.countersign.dev/p", "sops:e2e-init.db#password")],
    );
    let image = world.image();
    // With a line end: a runtime hands on whole lines.
    let read = format!("cat {PATH}/p; echo");
    manifest["spec"]["initContainers"] = json!([
        {"name": "first", "image": image, "command": ["sh", "-c", read]},
        {"name": "sidecar", "image": image, "restartPolicy": "Always", "command": ["sh", "-c", format!("{read}; sleep 100000")]},
    ]);
    space.start_from(&manifest).await?;
    for container in ["first", "sidecar"] {
        let said = async || Ok((space.log("staged", container).await? == "for-init\n").then_some(()));
        until(LIMIT, "read", said).await.with_context(|| container.to_owned())?;
    }
    ensure!(space.file("staged", "p").await? == "for-init");
    space.remove().await
}

async fn identities(world: Arc<World>) -> Result<()> {
    let space = world.space("identity").await?;
    for account in ["one", "two"] {
        space.account(account).await?;
        let mut manifest = space.manifest(
            account,
            &[("countersign.dev/inject", "true"), ("jwt.countersign.dev/token", "https://a.example")],
        );
        manifest["spec"]["serviceAccountName"] = json!(account);
        space.create(&manifest).await?;
    }
    for account in ["one", "two"] {
        space.running(account).await?;
        let claims = claims(&space.file(account, "token").await?)?;
        let id = format!("spiffe://{TRUST_DOMAIN}/ns/e2e-identity/sa/{account}");
        ensure!(claims.get("sub") == Some(&json!(id)), "{claims}");
    }
    space.remove().await
}

async fn job(world: Arc<World>) -> Result<()> {
    let space = world.space("job").await?;
    let mut manifest = space.manifest(
        "once",
        &[("countersign.dev/inject", "true"), ("secret.countersign.dev/p", "sops:e2e-job.db#password")],
    );
    manifest["spec"]["restartPolicy"] = json!("Never");
    manifest["spec"]["containers"][0]["command"] = json!(["cat", format!("{PATH}/p")]);
    space.create(&manifest).await?;
    let pods = space.api::<k8s_openapi::api::core::v1::Pod>();
    let ended = async || {
        let pod = pods.get("once").await?;
        let phase = pod.status.and_then(|status| status.phase);
        Ok(phase.filter(|phase| phase == "Succeeded" || phase == "Failed"))
    };
    let phase = until(LIMIT, "an end", ended).await?;
    ensure!(phase == "Succeeded" && space.log("once", "main").await? == "for-job", "{phase}");
    space.delete("once").await?;
    space.remove().await
}

/// As `docs/vault.md` has it, by `kubectl exec`.
async fn explained(world: Arc<World>) -> Result<()> {
    let space = world.space("explained").await?;
    let manifest = space.manifest(
        "asks",
        &[
            ("countersign.dev/inject", "true"),
            ("secret.countersign.dev/password", "sops:e2e-explained.db#password"),
        ],
    );
    let pod = space.start_from(&manifest).await?;
    let system = world.system().await?;
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).context("its node")?;
    let agents = system.ready("app.kubernetes.io/component=node").await?;
    let on_node = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
    let agent = name(agents.iter().find(on_node).context("the agent of its node")?)?;
    let command = ["/countersign-agent", "explain", "--answers", "/run/countersign/answers.sock", "-"];
    let text = system.feed(agent, "agent", &command, &serde_json::to_string(&pod)?).await?;
    let id = format!("spiffe://{TRUST_DOMAIN}/ns/e2e-explained/sa/default");
    ensure!(text.contains(&id) && text.contains("e2e-explained.db"), "{text}");
    ensure!(text.contains("it answered last") && text.contains(" s ago"), "{text}");
    ensure!(!text.contains("for-explained"), "a secret is shown: {text}");
    space.remove().await
}
