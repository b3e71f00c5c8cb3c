//! What kubelet itself counts of its calls to our driver.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};

/// How many calls ended how: `csi_operations_seconds` by method and gRPC status, with the seconds they took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Operations {
    counts: BTreeMap<(String, String), (u64, f64)>,
    /// Calls of `NodePublishVolume` that took at most so many seconds, as kubelet's histogram has it.
    buckets: BTreeMap<String, u64>,
}

const DRIVER: &str = "driver_name=\"csi.countersign.dev\"";
const PUBLISH: &str = "/csi.v1.Node/NodePublishVolume";

impl Operations {
    /// Sums up all nodes.
    pub async fn read(client: &Client) -> Result<Self> {
        let mut all = Self::default();
        for node in Api::<Node>::all(client.clone()).list(&ListParams::default()).await? {
            let name = node.metadata.name.context("a name")?;
            let request = http_get(&format!("/api/v1/nodes/{name}/proxy/metrics"))?;
            all.add(&client.request_text(request).await?);
        }
        Ok(all)
    }

    fn add(&mut self, text: &str) {
        for line in text.lines().filter(|line| line.contains(DRIVER)) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Some((name, labels)) = series.split_once('{') else { continue };
            let label = |wanted: &str| {
                let rest = labels.split_once(&format!("{wanted}=\""))?.1;
                Some(rest.split_once('"')?.0.to_owned())
            };
            let key =
                (label("method_name").unwrap_or_default(), label("grpc_status_code").unwrap_or_default());
            let number: f64 = value.parse().unwrap_or_default();
            match name {
                "csi_operations_seconds_count" => self.counts.entry(key).or_default().0 += whole(number),
                "csi_operations_seconds_sum" => self.counts.entry(key).or_default().1 += number,
                "csi_operations_seconds_bucket" if key.0 == PUBLISH => {
                    *self.buckets.entry(label("le").unwrap_or_default()).or_default() += whole(number);
                }
                _ => {}
            }
        }
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let counts = self.counts.iter().map(|(key, (count, sum))| {
            let (was, took) = before.counts.get(key).copied().unwrap_or_default();
            (key.clone(), (count.saturating_sub(was), sum - took))
        });
        let buckets = self.buckets.iter().map(|(bound, count)| {
            (bound.clone(), count.saturating_sub(before.buckets.get(bound).copied().unwrap_or_default()))
        });
        Self { counts: counts.filter(|(_, (count, _))| *count > 0).collect(), buckets: buckets.collect() }
    }

    /// How many volumes were published, or published again.
    pub fn published(&self) -> u64 {
        self.counts
            .iter()
            .filter(|((method, code), _)| method == PUBLISH && code == "OK")
            .map(|(_, (n, _))| n)
            .sum()
    }

    /// Mean time of a successful publish, in seconds.
    pub fn mean(&self) -> f64 {
        let of = |((method, code), value): (&(String, String), &(u64, f64))| {
            (method == PUBLISH && code == "OK").then_some(*value)
        };
        let (count, sum) = self.counts.iter().filter_map(of).fold((0.0, 0.0), |all, (count, sum)| {
            #[expect(clippy::cast_precision_loss, reason = "a few thousand calls")]
            let count = count as f64;
            (all.0 + count, all.1 + sum)
        });
        if count > 0.0 { sum / count } else { 0.0 }
    }

    /// The bound of kubelet's histogram below which this part of all publishes stayed, such as 0.99.
    pub fn quantile(&self, part: f64) -> String {
        let mut bounds: Vec<(f64, &str, u64)> = self
            .buckets
            .iter()
            .map(|(bound, &count)| (bound.parse().unwrap_or(f64::INFINITY), bound.as_str(), count))
            .collect();
        bounds.sort_by(|one, other| one.0.total_cmp(&other.0));
        let total = bounds.last().map_or(0, |last| last.2);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand calls")]
        let enough = |count: u64| count as f64 >= part * total as f64;
        bounds.iter().find(|bound| enough(bound.2)).map_or_else(|| "?".into(), |bound| bound.1.to_owned())
    }

    /// Calls that did not end well: method, status and number.
    pub fn failed(&self) -> Vec<(&str, &str, u64)> {
        let failed = self.counts.iter().filter(|((_, code), _)| code != "OK");
        failed.map(|((method, code), (count, _))| (method.as_str(), code.as_str(), *count)).collect()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
fn whole(number: f64) -> u64 {
    number as u64
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_how_they_ended() {
        let series = |name: &str, method: &str, code: &str, more: &str, value: &str| {
            format!(
                "csi_operations_seconds_{name}{{driver_name=\"csi.countersign.dev\",grpc_status_code=\"{code}\",\
                 method_name=\"/csi.v1.Node/{method}\",migrated=\"false\"{more}}} {value}\n"
            )
        };
        let mut before = Operations::default();
        before.add(&series("count", "NodePublishVolume", "OK", "", "1"));
        let mut after = Operations::default();
        after.add(
            &[
                series("count", "NodePublishVolume", "OK", "", "5"),
                series("sum", "NodePublishVolume", "OK", "", "0.4"),
                series("count", "NodeUnpublishVolume", "Unavailable", "", "2"),
                series("bucket", "NodePublishVolume", "OK", ",le=\"0.1\"", "2"),
                series("bucket", "NodePublishVolume", "OK", ",le=\"0.25\"", "4"),
                series("bucket", "NodePublishVolume", "OK", ",le=\"+Inf\"", "4"),
            ]
            .concat(),
        );
        after.add("csi_operations_seconds_count{driver_name=\"another\",grpc_status_code=\"Internal\"} 9\n");
        let since = after.since(&before);
        assert_eq!((since.published(), since.mean()), (4, 0.1));
        assert_eq!(since.failed(), [("/csi.v1.Node/NodeUnpublishVolume", "Unavailable", 2)]);
        assert_eq!((since.quantile(0.5).as_str(), since.quantile(0.99).as_str()), ("0.1", "0.25"));
    }
}
