//! Plain HTTP, as a scraper or a probe speaks it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Status code and body of a GET.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP head")?;
        let status = head.split(' ').nth(1).context("a status code")?.parse()?;
        Ok((status, body.to_owned()))
    };
    timeout(LIMIT, exchange).await.with_context(|| format!("GET http://{address}{path}"))?
}

/// The body of a GET that must succeed.
pub async fn get_ok(address: SocketAddr, path: &str) -> Result<String> {
    let (status, body) = get(address, path).await?;
    ensure!(status == 200, "GET http://{address}{path}: {status}: {body}");
    Ok(body)
}

/// Metrics in the text format of Prometheus.
#[derive(Debug, Clone)]
pub struct Metrics(String);

impl Metrics {
    /// Scrapes `/metrics`.
    pub async fn scrape(address: SocketAddr) -> Result<Self> {
        Ok(Self(get_ok(address, "/metrics").await?))
    }

    /// The sum of all series of this name whose labels include these, such as `result="ok"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let values: Vec<f64> = self.0.lines().filter_map(|line| value(line, name, labels)).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.0
    }
}

fn value(line: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (set, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.rsplit_once("} ")?,
        None => ("", rest.strip_prefix(' ')?),
    };
    let all = labels.iter().all(|label| set.contains(label));
    if all { value.split(' ').next()?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_their_labels() {
        let metrics = Metrics(
            "# TYPE a counter\na_total{s=\"x\",r=\"ok\"} 3\na_total{s=\"y\",r=\"no\"} 4\nb 1.5\n".into(),
        );
        assert_eq!(metrics.sum("a_total", &[]), Some(7.0));
        assert_eq!(metrics.sum("a_total", &["r=\"ok\""]), Some(3.0));
        assert_eq!(metrics.sum("b", &[]), Some(1.5));
        assert_eq!(metrics.sum("a", &[]), None);
    }
}
