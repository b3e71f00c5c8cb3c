//! What `docs/spire.md` tells its reader to write, as it is run here.

use anyhow::{Context, Result, ensure};
use countersign_vault_tests::page::Page;

use crate::spire::US;

/// The namespace that the page lets in.
const NAMESPACE: &str = "payments";

/// How the SPIRE agent is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broker {
    /// As the page has it.
    Ours,
    /// Both its blocks name somebody else.
    Anothers,
    /// Without the agent's block.
    Missing,
    /// Without the block of the k8s attestor.
    Unattested,
}

/// The SPIRE agent's configuration: the page's, with what a machine needs besides put into its blocks.
pub fn agent(broker: Broker, agent: &str, experimental: &str, plugins: &str, k8s: &str) -> Result<String> {
    let page = Page::read("spire.md")?;
    let [block] = page.under("The SPIRE agent", "hcl")?.try_into().ok().context("one block of HCL")?;
    // The admin socket is there always; who uses it is the chart's choice.
    let [delegated] = page
        .under("Older SPIREs: the Delegated Identity API", "hcl")?
        .try_into()
        .ok()
        .context("one block of HCL")?;
    let delegated = inside(&delegated.text).context("an agent's block of HCL")?;
    let mut text = block.text.replacen("agent {\n", &format!("agent {{\n{delegated}"), 1);
    match broker {
        Broker::Ours => {}
        Broker::Anothers => text = text.replace(US, "spiffe://example.org/somebody/else"),
        Broker::Missing => text = without(&text, "broker {", 0)?,
        Broker::Unattested => text = without(&text, "broker {", 1)?,
    }
    for (after, more) in [
        ("agent {\n", agent),
        ("experimental {\n", experimental),
        ("plugins {\n", plugins),
        ("WorkloadAttestor \"k8s\" { plugin_data {\n", k8s),
    ] {
        ensure!(text.contains(after), "docs/spire.md: no {after:?} in the block of HCL");
        text = text.replacen(after, &format!("{after}{more}\n"), 1);
    }
    Ok(text)
}

/// The rights the page gives us, for a namespace in place of the page's.
pub fn rights(namespace: &str) -> Result<String> {
    let page = Page::read("spire.md")?;
    let blocks = page.under("Entries and rights", "yaml")?;
    let texts: Vec<&str> = blocks.iter().map(|block| block.text.as_str()).collect();
    let text = texts.join("---\n");
    let place = format!("namespace: {NAMESPACE}");
    ensure!(text.contains(&place), "docs/spire.md: no {place:?} among the rights");
    Ok(text.replace(&place, &format!("namespace: {namespace}")))
}

/// What is between the first and the last brace.
fn inside(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("{\n")?;
    Some(rest.rsplit_once('}')?.0)
}

/// The text without its `n`th block that begins so.
fn without(text: &str, opening: &str, n: usize) -> Result<String> {
    let (start, _) = text.match_indices(opening).nth(n).with_context(|| format!("no {opening:?}"))?;
    let (before, block) = text.split_at(start);
    let mut depth = 0_u32;
    for (at, c) in block.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return Ok(format!("{before}{}", block.get(at + 1..).unwrap_or_default()));
        }
    }
    anyhow::bail!("{opening:?} has no end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_cut_with_all_that_is_in_it() {
        let text = "a { b { x = [ { } ] } c = 1 }\nb { y }\n";
        assert_eq!(without(text, "b {", 0).unwrap(), "a {  c = 1 }\nb { y }\n");
        assert_eq!(without(text, "b {", 1).unwrap(), "a { b { x = [ { } ] } c = 1 }\n\n");
        assert!(without(text, "b {", 2).is_err());
    }

    #[test]
    fn the_page_has_what_is_run() {
        let ours = agent(Broker::Ours, "A = 1", "E = 1", "P {}", "K = 1").unwrap();
        for part in [
            "agent {\nA = 1\n",
            "admin_socket_path",
            "authorized_delegates",
            "experimental {\nE = 1\n",
            "plugins {\nP {}\n",
            "plugin_data {\nK = 1\n",
            US,
        ] {
            assert!(ours.contains(part), "{part:?} is not in {ours}");
        }
        assert!(
            !agent(Broker::Missing, "", "", "", "").unwrap().contains("socket_path = \"/run/spire/broker")
        );
        assert!(!agent(Broker::Unattested, "", "", "", "").unwrap().contains("access_policy"));
        assert!(rights("e2e").unwrap().contains("namespace: e2e"));
    }
}
