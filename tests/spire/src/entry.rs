//! Registration entries.

use crate::spire::TRUST_DOMAIN;

/// What an entry says.
#[derive(Debug, Clone)]
pub struct Entry {
    pub(crate) arguments: Vec<String>,
}

impl Entry {
    /// One that gives `spiffe://<trust domain>/<path>` to whoever has all `selectors`.
    pub fn new(path: &str, selectors: &[&str]) -> Self {
        let mut entry =
            Self { arguments: Vec::new() }.with("-spiffeID", &format!("spiffe://{TRUST_DOMAIN}/{path}"));
        for selector in selectors {
            entry = entry.with("-selector", selector);
        }
        entry
    }

    /// The page's for Countersign's agent.
    pub fn ours() -> Self {
        Self::new("countersign/agent", &["k8s:ns:countersign-system", "k8s:sa:countersign-agent"])
    }

    /// One for a service account.
    pub fn account(namespace: &str, account: &str) -> Self {
        Self::new(
            &format!("ns/{namespace}/sa/{account}"),
            &[&format!("k8s:ns:{namespace}"), &format!("k8s:sa:{account}")],
        )
    }

    /// How long its X.509-SVIDs live, in seconds.
    #[must_use]
    pub fn living(self, seconds: u32) -> Self {
        self.with("-x509SVIDTTL", &seconds.to_string())
    }

    /// Another trust domain whose bundle comes along.
    #[must_use]
    pub fn federating(self, domain: &str) -> Self {
        self.with("-federatesWith", &format!("spiffe://{domain}"))
    }

    /// A DNS name in its X.509-SVIDs.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        self.with("-dns", name)
    }

    /// What a volume calls it, where the pod has several.
    #[must_use]
    pub fn hinted(self, hint: &str) -> Self {
        self.with("-hint", hint)
    }

    fn with(mut self, flag: &str, value: &str) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
        self
    }
}
