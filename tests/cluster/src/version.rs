//! Which Kubernetes the cluster is made of: the newest, or an older one that the environment names. Its parts differ in
//! what they know, and nothing else here asks for a number.

use std::fmt;

use anyhow::{Context, Result, ensure};
use countersign_tests::processes::workspace;

/// Names an older Kubernetes, such as `1.31`; `tests/tools/build.sh` goes by it too.
const VARIABLE: &str = "COUNTERSIGN_KUBERNETES";
/// The module that all parts are built from.
const MODULE: &str = "k8s.io/kubernetes";

/// A release of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    minor: u16,
    patch: u16,
}

impl Version {
    /// The one that `tests/tools/build.sh` builds in this environment.
    pub fn chosen() -> Result<Self> {
        let suffix = std::env::var(VARIABLE).ok().filter(|older| !older.is_empty());
        let suffix = suffix.map(|older| format!("-{older}")).unwrap_or_default();
        let path = workspace().join(format!("tests/tools/kubernetes{suffix}/go.mod"));
        let module = std::fs::read_to_string(&path).with_context(|| {
            format!("{VARIABLE} names no Kubernetes that is built here: {}", path.display())
        })?;
        Self::of_module(&module).with_context(|| path.display().to_string())
    }

    fn of_module(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace().skip_while(|&word| word != MODULE).skip(1);
        let version = words.next().with_context(|| format!("no {MODULE}"))?;
        let mut numbers = version.strip_prefix('v').unwrap_or(version).split('.').map(str::parse);
        let (Some(Ok(1_u16)), Some(Ok(minor)), Some(Ok(patch))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            anyhow::bail!("{version} is no release of Kubernetes");
        };
        ensure!(minor >= 31, "{version}: the chart takes Kubernetes from 1.31 on");
        Ok(Self { minor, patch })
    }

    /// The API version of `MutatingAdmissionPolicy`, where there is one. As beta it has to be switched on; see
    /// [`Self::switches`].
    pub fn policy(self) -> Option<&'static str> {
        match self.minor {
            ..=33 => None,
            34..=35 => Some("v1beta1"),
            36.. => Some("v1"),
        }
    }

    /// How the chart can have pods given their volume: values of `injection.mode`.
    pub fn ways(self) -> &'static [&'static str] {
        if self.policy().is_some() { &["policy", "webhook"] } else { &["webhook"] }
    }

    /// Feature gates of all parts that the tests need and that are not on by default.
    pub fn gates(self) -> Vec<&'static str> {
        let mut gates = Vec::new();
        if self.minor < 33 {
            // Pods with `hostUsers: false`.
            gates.push("UserNamespacesSupport=true");
        }
        if self.policy() == Some("v1beta1") {
            gates.push("MutatingAdmissionPolicy=true");
        }
        gates
    }

    /// Whether policies can be had as beta where they are v1: until 1.40 takes that away.
    pub fn beta_beside(self) -> bool {
        matches!(self.minor, 36..40)
    }

    /// Arguments of the API server that switch on what is served only on demand: the beta of policies where there is
    /// nothing newer, and beside what is newer where that is asked for.
    pub fn switches(self, beta: bool) -> Option<&'static str> {
        let needed = self.policy() == Some("v1beta1") || beta && self.beta_beside();
        needed.then_some("--runtime-config=admissionregistration.k8s.io/v1beta1=true")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}.{}", self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_names_its_release() {
        let tools = workspace().join("tests/tools");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&tools).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.starts_with("kubernetes") {
                continue;
            }
            let text = std::fs::read_to_string(tools.join(&name).join("go.mod")).unwrap();
            let version = Version::of_module(&text).unwrap().to_string();
            if let Some(older) = name.strip_prefix("kubernetes-") {
                assert!(version.starts_with(&format!("{older}.")), "{name} builds {version}");
            }
            found.push(name);
        }
        assert!(found.len() > 1, "{found:?}");
    }

    #[test]
    fn what_is_known_follows_from_the_version() {
        let of =
            |version: &str| Version::of_module(&format!("require {MODULE} {version} // indirect")).unwrap();
        assert_eq!((of("v1.31.14").policy(), of("v1.31.14").ways().len()), (None, 1));
        assert_eq!(
            (of("v1.35.4").policy(), of("v1.35.4").switches(false).is_some()),
            (Some("v1beta1"), true)
        );
        assert_eq!((of("v1.37.2").policy(), of("v1.37.2").gates().len()), (Some("v1"), 0));
        let beside = |version: &str| [false, true].map(|beta| of(version).switches(beta).is_some());
        assert_eq!(
            [beside("v1.31.14"), beside("v1.37.2"), beside("v1.40.0")],
            [[false; 2], [false, true], [false; 2]]
        );
        assert_eq!(of("v1.37.2").to_string(), "1.37.2");
    }

    #[test]
    fn what_is_no_release_is_refused() {
        for text in ["", "require k8s.io/kubernetes", "k8s.io/kubernetes v2.0.0", "k8s.io/kubernetes v1.30.4"]
        {
            assert!(Version::of_module(text).is_err(), "{text}");
        }
    }
}
