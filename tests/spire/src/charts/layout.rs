//! Where the charts put what, and by which of their README's ways.

use super::{named, rig};

/// One of the two ways in which the charts' README installs them.
#[derive(Debug)]
pub struct Layout {
    /// The namespace of the release.
    pub(super) management: &'static str,
    /// Those of SPIRE's server and of its agents.
    pub(super) servers: &'static str,
    pub(super) agents: &'static str,
    pub(super) values: &'static str,
    /// Whether SPIRE's agent runs in the group of root, unless it is told another.
    pub(super) roots: bool,
}

/// For production, which is what the page has.
pub const PRODUCTION: Layout = Layout {
    management: "spire-mgmt",
    servers: "spire-server",
    agents: "spire-system",
    values: rig::PRODUCTION,
    roots: false,
};

/// The quick one: all in one namespace, and by root.
pub const QUICK: Layout =
    Layout { management: "spire", servers: "spire", agents: "spire", values: rig::QUICK, roots: true };

impl Layout {
    /// A text of the page, for this one and for our trust domain.
    pub(super) fn own(&self, text: &str) -> String {
        let Self { management, agents, .. } = self;
        named(text)
            .replace("spire-mgmt-spire", &format!("{management}-spire"))
            .replace("namespace: spire-system", &format!("namespace: {agents}"))
    }

    pub(super) fn other(&self) -> &'static Self {
        if self.management == QUICK.management { &PRODUCTION } else { &QUICK }
    }
}
