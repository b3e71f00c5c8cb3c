//! What docs/migrate.md promises, row by row, answered by a real Vault. That every row is understood, the agent's own tests see.

use anyhow::{Context, Result, ensure};
use countersign_tests::harness::{Case, Needs, case};
use countersign_tests::node::SOON;
use countersign_tests::pods::Volume;
use countersign_tests::reader::read_file;
use countersign_vault_tests::world::{Plan, World, in_world};
use serde_json::json;

use crate::asking::pod;
use crate::refusals::permit;

pub(crate) fn cases() -> Vec<Case> {
    vec![case("migrate::each_row_is_answered", Needs::Root, each_row_is_answered)]
}

const PAGE: &str = include_str!("../../../../docs/migrate.md");

/// A row's right-hand side as a volume with one file `x`; none: it names no secret.
fn volume(code: &str) -> Option<Volume> {
    let filled = code.replace("common_name=…", "common_name=a.b").replace("ttl=…", "ttl=24h");
    let named = filled.split_once(": ").filter(|(key, _)| key.contains("countersign.dev/"));
    let value = named.map_or(filled.as_str(), |(_, value)| value);
    if value.starts_with("{{") || value.starts_with("{%") {
        return Some(Volume::new().template("x", &value.replace("\\|", "|")));
    }
    value.starts_with("vault:").then(|| Volume::new().secret("x", value))
}

async fn set_up(world: &World) -> Result<()> {
    let root = world.vault.root();
    permit(world, &["kv/*", "kv1/*", "pki/*", "auth/approle/*"]).await?;
    let secret = json!({"data": {"user": "u", "password": "p", "x": "y"}});
    for _ in 0..2 {
        root.write("kv/data/app", &secret).await?;
    }
    root.write("sys/mounts/kv1", &json!({"type": "kv", "options": {"version": "1"}})).await?;
    root.write("kv1/app", &json!({"password": "old"})).await?;
    let role = json!({"allow_any_name": true, "key_type": "ec", "key_bits": 256, "max_ttl": "72h"});
    root.write("pki/roles/web", &role).await?;
    root.write("sys/auth/approle", &json!({"type": "approle"})).await?;
    root.write("auth/approle/role/x", &json!({"token_policies": "default"})).await.map(drop)
}

async fn each_row_is_answered() -> Result<()> {
    in_world(Plan { database: true, ..Plan::default() }, async |world| {
        set_up(world).await?;
        let codes = PAGE.lines().filter(|line| line.starts_with('|'));
        // A bar inside a cell is written as \|.
        let codes =
            codes.filter_map(|line| line.trim_end_matches(" |").rsplit_once(" | ").map(|(_, right)| right));
        let codes: Vec<_> = codes.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        let mut answered = 0;
        for (number, code) in codes.into_iter().enumerate() {
            let Some(asked) = volume(code) else { continue };
            let mut volume = world
                .node
                .published(&pod(&format!("row-{number}")), asked)
                .await
                .with_context(|| code.to_owned())?;
            ensure!(!read_file(&volume.target(), "x")?.is_empty(), "{code}: an empty file");
            volume.unpublish(SOON).await?;
            answered += 1;
        }
        ensure!(answered >= 16, "{answered} rows: the tables are where they are looked for");
        Ok(())
    })
    .await
}
