//! Renewal by the key of the SVID in use: what the agent signs and the issuer checks.
//!
//! Kubelet brings a new token only while it republishes, and stops when a pod terminates, so an identity must be
//! renewable for a while without one. The proof is threefold: a *ticket* that only the issuer could have written
//! (it names the pod, its node and the public key), a fresh signature by that key (so a stolen ticket is worth
//! nothing), and the calling agent's own token for the very node in the ticket (so a stolen key is worth nothing
//! elsewhere). What is signed names the one request it is for.

use std::time::{Duration, SystemTime};

use crate::identity::key::{hex, sha256};

/// How far the clocks of agent and issuer may be apart.
pub(crate) const SKEW: Duration = Duration::from_secs(60);

/// The bytes under a renewal's signature.
///
/// `subject` is what is asked for: the CSR of a `Sign`, the audience of a `MintJwt`. No CSR is an audience (its
/// DER is not UTF-8), so a signature for one call can't serve the other.
pub(crate) fn message(ticket: &str, signed_at: i64, subject: &[u8]) -> Vec<u8> {
    format!("countersign renewal v1\n{ticket}\n{signed_at}\n{}", hex(&sha256(subject))).into_bytes()
}

/// When to renew what lives from `from` to `to`: at half of its life, ±10 % of that half.
///
/// `lot` is drawn by the caller from 0 to 1, so that identities made at once are not renewed at once.
pub(crate) fn renew_at(from: SystemTime, to: SystemTime, lot: f64) -> SystemTime {
    let half = to.duration_since(from).unwrap_or(Duration::ZERO) / 2;
    from + half.mul_f64(0.9 + 0.2 * lot.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_the_protocols() {
        assert_eq!(
            String::from_utf8(message("t.i.c", 17, b"")).unwrap(),
            "countersign renewal v1\nt.i.c\n17\n\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn half_of_the_life_with_a_tenth_of_it_as_jitter() {
        let from = SystemTime::UNIX_EPOCH;
        let at = |lot| renew_at(from, from + Duration::from_secs(3600), lot).duration_since(from).unwrap();
        assert_eq!(at(0.0), Duration::from_secs(1620));
        assert_eq!(at(0.5), Duration::from_secs(1800));
        assert_eq!(at(1.0), Duration::from_secs(1980));
        assert_eq!(renew_at(from + Duration::from_secs(9), from, 0.5), from + Duration::from_secs(9));
    }
}
