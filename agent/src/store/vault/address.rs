//! Where a server is, and whether it has been of use lately.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use rand::Rng;
use tokio::time::Instant;

/// Failures in a row after which an address is left alone for a while.
const TOLERATED: u32 = 3;
/// First and longest rest of an address.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The base address of one server: `https://HOST[:PORT][/prefix]`, or plain `http` to loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Without a slash at its end.
    base: String,
    tls: bool,
}

impl Address {
    /// Reads an address; the error says what to write.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |problem: &str| format!("address {text:?}: {problem}");
        let uri: Uri = text
            .parse()
            .map_err(|_| wrong("is no URL; write https://<host>:<port>, as VAULT_ADDR has it"))?;
        let host = uri.host().unwrap_or_default();
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err(wrong("holds credentials; leave them out"));
        }
        if uri.query().is_some() {
            return Err(wrong("has a query; leave it out"));
        }
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback(host) => false,
            Some("http") => {
                return Err(wrong("would send tokens in the clear; write https (http is for loopback only)"));
            }
            _ => return Err(wrong("must begin with https://")),
        };
        if host.is_empty() {
            return Err(wrong("names no host; write https://<host>:<port>"));
        }
        let path = uri.path().trim_end_matches('/');
        if path.ends_with("/v1") || path == "/v1" {
            return Err(wrong("ends with /v1; leave that out"));
        }
        let scheme = if tls { "https" } else { "http" };
        Ok(Self { base: format!("{scheme}://{authority}{path}"), tls })
    }

    /// Whether this is its scheme, host and port.
    pub(super) fn is_at(&self, origin: &str) -> bool {
        self.base.strip_prefix(origin).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether it is spoken to over TLS.
    pub(super) fn tls(&self) -> bool {
        self.tls
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// One server: its address, and a circuit that opens when it fails again and again.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: Address,
    circuit: Mutex<Circuit>,
}

#[derive(Debug, Default)]
struct Circuit {
    failures: u32,
    rest_until: Option<Instant>,
    problem: String,
}

/// An address that is left alone for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resting {
    /// What it did last.
    pub(super) problem: String,
    /// How long it is left alone yet.
    pub(super) for_another: Duration,
}

impl Server {
    pub(super) fn new(address: Address) -> Self {
        Self { address, circuit: Mutex::default() }
    }

    /// Whether a request may go there now. After a rest one is let through; the others wait for what becomes of it,
    /// `patience` at most.
    pub(super) fn admit(&self, now: Instant, patience: Duration) -> Result<(), Resting> {
        let mut circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        match circuit.rest_until {
            Some(until) if until > now => {
                Err(Resting { problem: circuit.problem.clone(), for_another: until - now })
            }
            Some(_) => {
                circuit.rest_until = Some(now + patience);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether it is left alone for now.
    pub(super) fn is_resting(&self, now: Instant) -> bool {
        let circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        circuit.rest_until.is_some_and(|until| until > now)
    }

    /// It answered as a server in service does.
    pub(super) fn served(&self) {
        let mut circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        if circuit.rest_until.is_some() {
            tracing::info!(address = %self.address, "the server is back");
        }
        *circuit = Circuit::default();
    }

    /// It did not.
    pub(super) fn failed(&self, now: Instant, problem: &str) {
        let mut circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        circuit.failures = circuit.failures.saturating_add(1);
        problem.clone_into(&mut circuit.problem);
        let Some(excess) = circuit.failures.checked_sub(TOLERATED) else { return };
        let (first, longest) = REST;
        let rest = first.saturating_mul(1 << excess.min(16)).min(longest);
        let jitter = rand::rng().random_range(0.8..=1.2);
        if excess == 0 {
            tracing::warn!(address = %self.address, problem, "the server fails again and again; it is left alone for a while");
        }
        circuit.rest_until = Some(now + rest.mul_f64(jitter));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, base, tls) in [
            ("https://vault:8200", "https://vault:8200", true),
            ("https://vault.example.com/", "https://vault.example.com", true),
            ("https://proxy/vault/", "https://proxy/vault", true),
            ("https://[::1]:8200", "https://[::1]:8200", true),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200", false),
            ("http://localhost:8200", "http://localhost:8200", false),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.to_string().as_str(), address.tls()), (base, tls));
        }
        let proxy = Address::parse("https://proxy/vault/").unwrap();
        assert!(proxy.is_at("https://proxy") && !proxy.is_at("https://prox") && !proxy.is_at("http://proxy"));
        for (text, why) in [
            ("vault:8200", "must begin with https://"),
            ("http://vault:8200", "in the clear"),
            ("http://127.0.0.1.example.com", "in the clear"),
            ("https://user:pass@vault", "credentials"),
            ("https://vault/v1", "/v1"),
            ("https://vault/?a=b", "query"),
            ("ftp://vault", "must begin with https://"),
            ("", "is no URL"),
        ] {
            let problem = Address::parse(text).unwrap_err();
            assert!(problem.contains(why), "{text}: {problem}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_fails_again_and_again_is_left_alone_and_tried_by_one() {
        let server = Server::new(Address::parse("https://vault").unwrap());
        let patience = Duration::from_secs(10);
        for _ in 0..2 {
            server.failed(Instant::now(), "refused");
        }
        assert_eq!(server.admit(Instant::now(), patience), Ok(()), "two failures are tolerated");
        server.failed(Instant::now(), "refused");
        let resting = server.admit(Instant::now(), patience).unwrap_err();
        assert_eq!(resting.problem, "refused");
        tokio::time::advance(resting.for_another).await;
        assert_eq!(server.admit(Instant::now(), patience), Ok(()));
        assert!(server.admit(Instant::now(), patience).is_err(), "the others wait for the one that tries");
        server.failed(Instant::now(), "refused again");
        let longer = server.admit(Instant::now(), patience).unwrap_err();
        assert!(longer.for_another >= Duration::from_millis(1600), "{longer:?}");
        tokio::time::advance(longer.for_another).await;
        server.admit(Instant::now(), patience).unwrap();
        server.served();
        for _ in 0..10 {
            assert_eq!(server.admit(Instant::now(), patience), Ok(()));
        }
    }
}
