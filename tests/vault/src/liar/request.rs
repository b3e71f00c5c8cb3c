//! A request as it came.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};

/// More than any request here has.
const MOST: usize = 1 << 20;

/// A request as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET` and so on.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// What the client showed in the handshake, in DER.
    pub certificate: Option<Vec<u8>>,
}

impl Request {
    /// Reads one; nothing if the connection ends before it begins.
    pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Self>> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            ensure!(bytes.len() < MOST, "a head of {} bytes", bytes.len());
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(None);
            }
            ensure!(bytes.first().is_some_and(u8::is_ascii_uppercase), "no method begins like that");
        };
        let head = String::from_utf8(bytes.get(..end).unwrap_or_default().to_vec())?;
        let mut lines = head.lines();
        let mut first = lines.next().context("a first line")?.split(' ');
        let (method, target) = (first.next().context("a method")?, first.next().context("a target")?);
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers: Vec<_> =
            headers.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect();
        let mut request = Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers,
            body: bytes.split_off(end + 4),
            certificate: None,
        };
        let length = request.header("content-length").map_or(Ok(0), str::parse::<usize>)?;
        ensure!(length < MOST, "a body of {length} bytes");
        while request.body.len() < length {
            ensure!(stream.read_buf(&mut request.body).await? > 0, "the body ends early");
        }
        Ok(Some(request))
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A header by its name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null where there is none.
    pub fn json(&self) -> Result<Value> {
        if self.body.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&self.body)?) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn head_and_body_are_read() {
        let text = b"PUT /v1/a?b=c HTTP/1.1\r\nX-Vault-Token: t\r\ncontent-length: 7\r\n\r\n{\"a\":1}";
        let request = Request::read(&mut &text[..]).await.unwrap().unwrap();
        assert_eq!((request.method.as_str(), request.path()), ("PUT", "/v1/a"));
        assert_eq!(request.header("x-vault-token"), Some("t"));
        assert_eq!(request.json().unwrap()["a"], 1);
        assert_eq!(Request::read(&mut &b""[..]).await.unwrap(), None);
        assert!(Request::read(&mut &b"PUT / HTTP/1.1\r\ncontent-length: 9\r\n\r\n{}"[..]).await.is_err());
    }
}
