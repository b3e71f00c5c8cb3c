//! What SPIRE signs with, and its replacement.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use countersign_cluster::pods::{LIMIT, until};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::program::{certificate, s_client};
use crate::spire::{PORT, Spire};

impl Spire {
    /// Prepares a new authority of a kind, `x509` or `jwt`, which is in the bundle from then on; its id.
    pub fn prepare(&self, kind: &str) -> Result<String> {
        self.authority(&["localauthority", kind, "prepare"], "prepared_authority")
    }

    /// Signs with the prepared authority from now on; the id of the one before.
    pub fn activate(&self, kind: &str, id: &str) -> Result<()> {
        self.server(&["localauthority", kind, "activate", "-authorityID", id]).map(drop)
    }

    /// The authority that signs now.
    pub fn active(&self, kind: &str) -> Result<String> {
        self.authority(&["localauthority", kind, "show"], "active")
    }

    /// Declares an authority to be compromised: whoever has an SVID by it gets another one. Done when SPIRE's own server and
    /// agent have theirs. To revoke it sooner would leave an agent that takes its server for a stranger, and ends.
    pub async fn taint_x509(&self, id: &str) -> Result<()> {
        let renewed = self.agent_renewals()?;
        self.server(&["localauthority", "x509", "taint", "-authorityID", id])?;
        until(LIMIT, "SPIRE's own SVIDs by another authority", async || {
            Ok((self.agent_renewals()? > renewed && signer()? != id).then_some(()))
        })
        .await
    }

    /// Takes an authority out of the bundle.
    pub fn revoke(&self, kind: &str, id: &str) -> Result<()> {
        self.server(&["localauthority", kind, "revoke", "-authorityID", id]).map(drop)
    }

    fn agent_renewals(&self) -> Result<usize> {
        Ok(fs::read_to_string(self.path("server.log"))?.matches("method=RenewAgent").count())
    }

    fn authority(&self, arguments: &[&str], which: &str) -> Result<String> {
        let said = self.server(&[arguments, &["-output", "json"]].concat())?;
        let answer: serde_json::Value = serde_json::from_str(&said)?;
        let id = answer.pointer(&format!("/{which}/authority_id")).and_then(serde_json::Value::as_str);
        id.map(str::to_owned).with_context(|| format!("no {which} authority in {said}"))
    }
}

/// The id of the authority that has signed what the server shows: SPIRE takes the id of its key for it.
fn signer() -> Result<String> {
    let mut client: Command = s_client(&format!("127.0.0.1:{PORT}"))?;
    let shown = certificate(&client.output()?.stdout)?;
    let (_, shown) = X509Certificate::from_der(&shown)?;
    let key = shown.iter_extensions().find_map(|extension| {
        if let ParsedExtension::AuthorityKeyIdentifier(by) = extension.parsed_extension() {
            by.key_identifier.as_ref()
        } else {
            None
        }
    });
    Ok(format!("{:x}", key.context("no authority key identifier")?).replace(':', ""))
}
