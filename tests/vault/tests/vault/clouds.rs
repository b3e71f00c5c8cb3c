//! Credentials of a cloud: Vault's own engine makes them at a stand-in for AWS, and they are leases like any other.
//! The engines for Azure and Google speak to their clouds alone, and cannot be told otherwise.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::{SOON, eventually};
use countersign_tests::pods::Volume;
use countersign_tests::reader::read_file;
use countersign_vault_tests::aws::{Aws, ROOT_KEY, ROOT_SECRET};
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::{Map, json};

use crate::asking::{changed, one, pod};
use crate::refusals::permit;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("clouds::aws_users_live_as_long_as_their_pods", Needs::Root, aws_users),
        case("clouds::aws_roles_are_assumed_anew_in_time", Needs::Root, aws_roles),
    ]
}

/// How long the stand-in lends a role.
const LENT: Duration = Duration::from_secs(15);

async fn in_account(body: impl AsyncFnOnce(&mut World, &Aws) -> Result<()>) -> Result<()> {
    let store = Map::from_iter([("leaseOverlap".to_owned(), json!("2s"))]);
    in_world(Plan { store, ..Plan::default() }, async |world| {
        let aws = Aws::start(LENT).await?;
        permit(world, &["aws/*"]).await?;
        let root = world.vault.root();
        root.write("sys/mounts/aws", &json!({"type": "aws"})).await?;
        let config = json!({
            "access_key": ROOT_KEY, "secret_key": ROOT_SECRET, "region": "us-east-1", "iam_endpoint": aws.url(),
            "sts_endpoint": aws.url(), "sts_region": "us-east-1",
        });
        root.write("aws/config/root", &config).await?;
        body(world, &aws).await
    })
    .await
}

/// An access key and its secret, of one read.
fn keys(path: &str) -> Volume {
    let field = |name: &str| format!("{{{{ secret(\"vault:{path}\").{name} }}}}");
    Volume::new().template("a", &format!("{} {}", field("access_key"), field("secret_key")))
}

/// The access key in the file, which opens the account.
fn opens(aws: &Aws, pair: &str) -> Result<String> {
    let (key, secret) = pair.split_once(' ').context("a pair")?;
    ensure!(aws.secret(key).as_deref() == Some(secret), "{key} is no key of the account: {:?}", aws.users());
    Ok(key.to_owned())
}

async fn aws_users() -> Result<()> {
    in_account(async |world, aws| {
        let root = world.vault.root();
        root.write("aws/config/lease", &json!({"lease": "8s", "lease_max": "20s"})).await?;
        let policy = r#"{"Version": "2012-10-17", "Statement": []}"#;
        let role = json!({"credential_type": "iam_user", "policy_document": policy});
        root.write("aws/roles/deploy", &role).await?;
        let mut first_pod = world.node.published(&pod("api-1"), keys("aws/creds/deploy")).await?;
        let mut second_pod = world.node.published(&pod("api-2"), keys("aws/creds/deploy")).await?;
        let first = read_file(&first_pod.target(), "a")?;
        let second = read_file(&second_pod.target(), "a")?;
        ensure!(opens(aws, &first)? != opens(aws, &second)?, "each pod has a user of its own");
        second_pod.unpublish(SOON).await?;
        let alone = async || aws.users().len() == 1;
        eventually(SOON, "the second goes with its pod", alone).await?;
        opens(aws, &first)?;
        // It is renewed until its longest life is near; then comes another, while the old one is still good.
        let next = changed(&first_pod, "a", &first, SOON).await?;
        let renewals = world.vault.audit()?.iter().filter(|entry| entry.asks_for("sys/leases/renew")).count();
        ensure!(renewals >= 1, "it was renewed before");
        opens(aws, &first).context("the old one is good when the new one is there")?;
        opens(aws, &next)?;
        eventually(SOON, "the old one goes", alone).await?;
        first_pod.unpublish(SOON).await?;
        eventually(SOON, "the last one goes with its pod", async || aws.users().is_empty()).await?;
        let actions = aws.actions();
        for action in ["DeleteAccessKey", "DeleteUserPolicy", "DeleteUser"] {
            let count = actions.iter().filter(|asked| *asked == action).count();
            ensure!(count >= 3, "{action} for each of three users: {actions:?}");
        }
        Ok(())
    })
    .await
}

/// What a role lends ends by itself and cannot be renewed.
async fn aws_roles() -> Result<()> {
    in_account(async |world, aws| {
        let role =
            json!({"credential_type": "assumed_role", "role_arns": "arn:aws:iam::123456789012:role/deploy"});
        world.vault.root().write("aws/roles/deploy", &role).await?;
        let asked = one("vault:aws/sts/deploy#access_key").refresh("1h");
        let mut volume = world.node.published(&pod("api-1"), asked).await?;
        let mut before = read_file(&volume.target(), "a")?;
        for _ in 0..2 {
            let next = changed(&volume, "a", &before, SOON).await?;
            ensure!(aws.is_lent(&before), "the new one comes before the old one ends");
            ensure!(aws.is_lent(&next), "and is good itself");
            before = next;
        }
        volume.unpublish(SOON).await
    })
    .await
}
