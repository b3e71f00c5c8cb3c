//! A Vault that was set up as `docs/vault.md` has it, with SPIRE's keys and roots.

use std::path::Path;

use anyhow::{Context, Result};
use countersign_cluster::layout::NODE_ADDRESS;
use countersign_cluster::tools::tool;
use countersign_vault_tests::authority::Authority;
use countersign_vault_tests::page::{Page, Shell};
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
        let vault = Self { server, page: Page::read("vault.md")? };
        let shell = Shell::default()
            .with_path(&vault.server.on_path()?)
            .with("VAULT_ADDR", vault.server.url())
            .with("VAULT_CACERT", vault.server.ca().display().to_string())
            .with("VAULT_TOKEN", vault.server.root_token())
            .with("JWKS_URL", web.url())
            .with("JWKS_CA", web.ca.display().to_string());
        for heading in ["The login, once a cluster", "A workload", "Secrets to try it with"] {
            for block in vault.page.under(heading, "sh")? {
                shell.run(vault.server.directory(), &block.text).context(heading)?;
            }
        }
        let method = json!({"type": "cert"});
        vault.server.root().write("sys/auth/cert", &method).await?;
        let partner = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault", "token_policies": "payments-api",
            "bound_subject": format!("spiffe://{TRUST_DOMAIN}/{HINTED_STORE}"),
        });
        vault.server.root().write(&format!("auth/jwt/role/{HINTED_STORE}"), &partner).await?;
        Ok(vault)
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

    /// Has it take certificates of the page's workload from these roots, in DER, and from no others.
    pub async fn trust_roots(&self, roots: &[Vec<u8>]) -> Result<()> {
        let pem: String = roots.iter().map(|der| crate::files::pem(der)).collect();
        let role = json!({
            "certificate": pem,
            "allowed_uri_sans": "spiffe://example.org/ns/payments/sa/api",
            "token_policies": "payments-api",
        });
        self.server.root().write("auth/cert/certs/payments_api", &role).await.map(drop)
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
