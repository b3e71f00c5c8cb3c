//! A Vault that was set up as `docs/vault.md` has it, with SPIRE's keys and roots.

use std::path::Path;

use anyhow::{Context, Result};
use countersign_cluster::layout::NODE_ADDRESS;
use countersign_cluster::tools::tool;
use countersign_tests::scratch::replace_file;
use countersign_vault_tests::authority::Authority;
use countersign_vault_tests::page::{Block, Page, Shell};
use countersign_vault_tests::server;
use serde_json::{Value, json};

use crate::spire::{TRUST_DOMAIN, Web};

/// The store that logs in with the X.509-SVID; `vault` is the page's.
pub const CERT_STORE: &str = "vault-cert";
/// The store that wants to see the SVID with its own name for a hint.
pub const HINTED_STORE: &str = "partner";
/// Where the agent finds the roots of Vault's certificate.
const CA: &str = "/etc/countersign/vault/ca.pem";
/// A port of the node.
const PORT: u16 = 8200;

/// Vault on the node.
#[derive(Debug)]
pub struct Vault {
    server: server::Vault,
    page: Page,
    /// What the page's commands find around them.
    shell: Shell,
}

impl Vault {
    /// Starts one; `web` is where SPIRE's keys are served.
    pub async fn start(web: &Web) -> Result<Self> {
        let server = server::Vault::start_at(
            server::Kind::Vault,
            tool("vault")?,
            (NODE_ADDRESS, PORT).into(),
            Vec::new(),
        )
        .await?;
        let shell = Shell::default()
            .with_path(&server.on_path()?)
            .with("VAULT_ADDR", server.url())
            .with("VAULT_CACERT", server.ca().display().to_string())
            .with("VAULT_TOKEN", server.root_token())
            .with("JWKS_URL", web.url())
            .with("JWKS_CA", web.ca.display().to_string());
        let vault = Self { server, page: Page::read("vault.md")?, shell };
        for heading in ["The login, once a cluster", "A workload", "Secrets to try it with"] {
            for block in vault.page.under(heading, "sh")? {
                vault.run(block).context(heading)?;
            }
        }
        let [enable, _] = vault.by_certificate()?;
        vault.run(enable)?;
        let partner = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault", "token_policies": "payments-api",
            "bound_subject": format!("spiffe://{TRUST_DOMAIN}/{HINTED_STORE}"),
        });
        vault.server.root().write(&format!("auth/jwt/role/{HINTED_STORE}"), &partner).await?;
        Ok(vault)
    }

    fn run(&self, block: &Block) -> Result<()> {
        self.shell.run(self.server.directory(), &block.text).map(drop)
    }

    /// The command that turns logins by certificate on, and the one that lets the page's workload in by these.
    fn by_certificate(&self) -> Result<[&Block; 2]> {
        self.page.under("By certificate", "sh")?.try_into().ok().context("two blocks of commands")
    }

    /// What the chart's values say of it.
    pub fn values(&self) -> Result<[(&'static str, Value); 2]> {
        let mut page = self.page.yaml("The store", "stores")?["vault"].clone();
        page["addresses"] = json!([self.server.url()]);
        page["caFile"] = json!(CA);
        let mut cert = page.clone();
        cert["login"]["method"] = json!("cert");
        let mut partner = page.clone();
        partner["login"]["role"] = json!(HINTED_STORE);
        partner["hint"] = json!(HINTED_STORE);
        let directory = Path::new(CA).parent().context("a file lies in a directory")?;
        let agent = json!({
            "extraVolumes": [{"name": "vault-ca", "configMap": {"name": "vault-ca"}}],
            "extraVolumeMounts": [{"name": "vault-ca", "mountPath": directory, "readOnly": true}],
        });
        Ok([("stores", json!({"vault": page, CERT_STORE: cert, HINTED_STORE: partner})), ("agent", agent)])
    }

    /// The authority of its certificate.
    pub fn authority(&self) -> &Authority {
        self.server.authority()
    }

    /// Has it take certificates of the page's workload from these roots, as `spire-server bundle show` writes them, and
    /// from no others.
    pub fn trust_roots(&self, roots: &str) -> Result<()> {
        replace_file(&self.server.directory().join("roots.pem"), roots.as_bytes(), 0o644)?;
        let [_, role] = self.by_certificate()?;
        self.run(role)
    }

    /// Revokes every token that a login gave.
    pub async fn end_logins(&self) -> Result<()> {
        for mount in ["jwt", "cert"] {
            let path = format!("sys/leases/revoke-prefix/auth/{mount}");
            self.server.root().write(&path, &json!({"sync": true})).await?;
        }
        Ok(())
    }

    /// Writes the page's secret anew.
    pub async fn put_password(&self, password: &str) -> Result<()> {
        let secret = json!({"data": {"username": "app", "password": password}});
        self.server.root().write("kv/data/payments", &secret).await.map(drop)
    }
}
