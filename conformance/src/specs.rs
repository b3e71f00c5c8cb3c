//! What csi-sanity 5.6.0 can and can't ask of a node plugin for inline ephemeral volumes.
//!
//! This is the one place where skips are explained. The runner prints it, and fails when a run differs from it.

/// Specs that ask the driver.
pub(crate) const PASSED_BY_DRIVER: usize = 17;
/// Specs that ask the stand-in controller only. They say nothing of the driver.
pub(crate) const PASSED_BY_STAND_IN: usize = 5;
/// What those are beneath.
pub(crate) const STAND_IN: &str = "Controller Service [Controller Server]";

/// Specs that are skipped for one reason.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    /// How their names begin.
    pub(crate) beneath: &'static str,
    /// How many there are.
    pub(crate) specs: usize,
    /// Why they can't be asked.
    pub(crate) why: &'static str,
}

impl Skip {
    /// Whether this is about the spec of that name.
    pub(crate) fn names(&self, spec: &str) -> bool {
        spec.strip_prefix(self.beneath).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }
}

/// All skips.
pub(crate) const SKIPS: &[Skip] = &[];
