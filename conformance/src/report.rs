//! Ginkgo's report of a run, and the judgement on it.

use std::fmt::{self, Write};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::specs::{self, Skip};

/// One spec and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    /// Everything it is beneath, and its own text.
    pub(crate) name: String,
    /// How it went.
    pub(crate) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// Skipped by the suite, or not even tried by it ("pending").
    Skipped,
    /// Anything else, with what was said of it.
    Failed(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Reported>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Reported {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

/// Reads a report made by `--ginkgo.json-report`.
pub(crate) fn read(json: &[u8]) -> Result<Vec<Spec>> {
    let suites: Vec<Suite> = serde_json::from_slice(json).context("the report of csi-sanity")?;
    let reported = suites.into_iter().flat_map(|suite| suite.spec_reports);
    Ok(reported
        .filter_map(|spec| {
            let mut texts = spec.container_hierarchy_texts.unwrap_or_default();
            texts.push(spec.leaf_node_text);
            let outcome = match (spec.state.as_str(), spec.leaf_node_type.as_str()) {
                ("passed", "It") => Outcome::Passed,
                // Steps around the suite are no specs, unless they go wrong.
                ("passed", _) => return None,
                ("skipped" | "pending", _) => Outcome::Skipped,
                (state, _) => {
                    let said = spec.failure.map(|failure| failure.message).unwrap_or_default();
                    Outcome::Failed(format!("{state}: {}", said.trim()))
                }
            };
            Some(Spec { name: texts.join(" "), outcome })
        })
        .collect())
}

/// How a run compares with what is expected of it.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    passed_driver: usize,
    passed_stand_in: usize,
    skipped: Vec<(&'static Skip, usize)>,
    /// Each a sentence.
    pub(crate) faults: Vec<String>,
    failed: usize,
}

/// Compares a run with `specs`: what was skipped must be named there, as often as it was, and no fewer may pass.
pub(crate) fn judge(specs: &[Spec]) -> Judgement {
    let mut judgement =
        Judgement { skipped: specs::SKIPS.iter().map(|skip| (skip, 0)).collect(), ..Judgement::default() };
    for spec in specs {
        match &spec.outcome {
            Outcome::Passed if spec.name.starts_with(specs::STAND_IN) => judgement.passed_stand_in += 1,
            Outcome::Passed => judgement.passed_driver += 1,
            Outcome::Skipped => match judgement.skipped.iter_mut().find(|(skip, _)| skip.names(&spec.name)) {
                Some((_, count)) => *count += 1,
                None => {
                    judgement.faults.push(format!("skipped, and no reason is written down: {}", spec.name));
                }
            },
            Outcome::Failed(said) => {
                judgement.failed += 1;
                judgement.faults.push(format!("{}\n    {}", spec.name, said.replace('\n', "\n    ")));
            }
        }
    }
    for (skip, count) in &judgement.skipped {
        if *count != skip.specs {
            judgement
                .faults
                .push(format!("{} of «{}» are skipped, {} are expected", count, skip.beneath, skip.specs));
        }
    }
    let counts = [
        ("of the driver", judgement.passed_driver, specs::PASSED_BY_DRIVER),
        ("of the stand-in controller", judgement.passed_stand_in, specs::PASSED_BY_STAND_IN),
    ];
    for (whose, passed, expected) in counts {
        if passed != expected {
            judgement.faults.push(format!("{passed} specs {whose} passed, {expected} are expected"));
        }
    }
    judgement
}

impl Judgement {
    /// Number of specs that failed.
    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    /// Passed, failed, skipped: what a caller adds up. A fault that is no failed spec counts as one failure.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let failed = if self.faults.is_empty() { 0 } else { self.failed.max(1) };
        (self.passed_driver + self.passed_stand_in, failed, self.skipped.iter().map(|(_, count)| count).sum())
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut skips = String::new();
        for (skip, count) in &self.skipped {
            writeln!(skips, "  {count:>3}  {}\n       {}", skip.beneath, skip.why)?;
        }
        write!(f, "not asked of this driver, and why:\n{skips}")?;
        writeln!(
            f,
            "{} specs passed against the driver, {} more against the stand-in controller that lets them be asked",
            self.passed_driver, self.passed_stand_in
        )?;
        for fault in &self.faults {
            writeln!(f, "FAULT {fault}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, outcome: Outcome) -> Spec {
        Spec { name: name.to_owned(), outcome }
    }

    /// A run as it should be.
    fn good() -> Vec<Spec> {
        let driver =
            (0..specs::PASSED_BY_DRIVER).map(|n| spec(&format!("Node Service {n}"), Outcome::Passed));
        let stand_in = (0..specs::PASSED_BY_STAND_IN)
            .map(|n| spec(&format!("{} {n}", specs::STAND_IN), Outcome::Passed));
        let skipped = specs::SKIPS.iter().flat_map(|skip| {
            (0..skip.specs).map(|n| spec(&format!("{} {n}", skip.beneath), Outcome::Skipped))
        });
        driver.chain(stand_in).chain(skipped).collect()
    }

    #[test]
    fn a_good_run_has_no_fault() {
        let judgement = judge(&good());
        assert!(judgement.faults.is_empty(), "{judgement}");
        let skipped = specs::SKIPS.iter().map(|skip| skip.specs).sum();
        assert_eq!(judgement.counts(), (specs::PASSED_BY_DRIVER + specs::PASSED_BY_STAND_IN, 0, skipped));
    }

    #[test]
    fn one_fewer_is_a_fault() {
        let judgement = judge(&good()[1..]);
        assert_eq!(judgement.faults.len(), 1, "{judgement}");
        assert_eq!(judgement.counts().1, 1);
    }

    #[test]
    fn an_unexpected_skip_is_a_fault() {
        let mut run = good();
        run[0].outcome = Outcome::Skipped;
        let judgement = judge(&run);
        assert!(judgement.faults[0].contains("no reason is written down: Node Service 0"), "{judgement}");
    }

    #[test]
    fn a_failure_is_told() {
        let mut run = good();
        run[0].outcome = Outcome::Failed("failed: expected 3 to equal 4".to_owned());
        let judgement = judge(&run);
        assert!(judgement.to_string().contains("expected 3 to equal 4"), "{judgement}");
        assert_eq!(judgement.counts().1, 1);
    }

    #[test]
    fn a_report_is_read() {
        let json = br#"[{"SpecReports": [
            {"ContainerHierarchyTexts": ["Node Service", "NodeGetInfo"], "LeafNodeText": "works",
             "LeafNodeType": "It", "State": "passed"},
            {"ContainerHierarchyTexts": ["Node Service"], "LeafNodeText": "stages", "LeafNodeType": "It",
             "State": "skipped", "Failure": {"Message": "not supported"}},
            {"ContainerHierarchyTexts": null, "LeafNodeText": "", "LeafNodeType": "BeforeSuite", "State": "passed"},
            {"ContainerHierarchyTexts": null, "LeafNodeText": "", "LeafNodeType": "AfterSuite", "State": "panicked",
             "Failure": {"Message": "boom"}}
        ]}]"#;
        let wanted = [
            spec("Node Service NodeGetInfo works", Outcome::Passed),
            spec("Node Service stages", Outcome::Skipped),
            spec("", Outcome::Failed("panicked: boom".to_owned())),
        ];
        assert_eq!(read(json).unwrap(), wanted);
    }
}
